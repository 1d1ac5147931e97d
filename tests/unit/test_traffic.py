"""Turns, absences and blame, against a server of a few lines that dies on command."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_graph.errors import CrashingQuestionError, ModelUnavailableError
from matrix_graph.models import traffic as module
from matrix_graph.models.traffic import Traffic, Unserving
from matrix_graph.models.turn import Turn, Visitor, clock


class Dead(Exception):
    def __init__(self, *, reached: bool) -> None:
        self.reached = reached


class Server:
    """Answers after `seconds`; dies when it is killed, or of a poison; comes back by itself after `downtime`."""

    def __init__(self, seconds: float = 0.002, downtime: float = 0.01) -> None:
        self.seconds, self.downtime = seconds, downtime
        self.alive = True
        self.deaths = 0
        self.in_flight = 0
        self.peak = 0
        self.served: list[str] = []
        self._death = asyncio.Event()

    def die(self) -> None:
        self.alive = False
        self.deaths += 1
        self._death.set()
        self._death = asyncio.Event()
        asyncio.get_running_loop().call_later(self.downtime, self.come_back)

    def come_back(self) -> None:
        self.alive = True

    async def request(self, name: str) -> None:
        if not self.alive:
            raise Dead(reached=False)
        death = self._death
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(0)
            if "poison" in name and death is self._death:
                self.die()
            if not death.is_set():
                await asyncio.wait([asyncio.create_task(death.wait())], timeout=self.seconds)
            if death.is_set():
                raise Dead(reached=True)
            self.served.append(name)
        finally:
            self.in_flight -= 1

    async def probe(self) -> str | None:
        await asyncio.sleep(0)
        return None if self.alive else "connection refused"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_FIRST_WAIT", 0.002)
    monkeypatch.setattr(module, "_LONGEST_WAIT", 0.004)
    yield


async def call(traffic: Traffic, server: Server, name: str, seconds: float | None = None) -> None:
    """As the HTTP client does it: again and again, as long as traffic lets it."""
    async with Turn(seconds):
        while True:
            try:
                return await server.request(name)
            except Dead as death:
                await traffic.lost(reached=death.reached)


async def scene(traffic: Traffic, server: Server, visitor: Visitor, names: list[str]) -> str:
    with visitor.here():
        try:
            for name in names:
                await call(traffic, server, name)
        except (CrashingQuestionError, ModelUnavailableError) as error:
            return type(error).__name__
        finally:
            traffic.left(visitor)
    return "done"


@settings(max_examples=25, deadline=None)
@given(
    scenes=st.integers(1, 12),
    poisons=st.sets(st.integers(0, 11), max_size=2),
    most=st.integers(1, 8),
    at=st.integers(0, 2),
)
def test_a_poison_is_set_aside_after_two_deaths_and_all_others_are_served(
    scenes: int, poisons: set[int], most: int, at: int
) -> None:
    async def run() -> None:
        server = Server()
        traffic = Traffic(most, probe=server.probe)
        names = [[f"{n}-{step}" for step in range(3)] for n in range(scenes)]
        for n in poisons & set(range(scenes)):
            names[n][at] += " poison"
        ends = await asyncio.gather(*(scene(traffic, server, traffic.visitor(n), own) for n, own in enumerate(names)))
        condemned = poisons & set(range(scenes))
        assert [end == "CrashingQuestionError" for end in ends] == [n in condemned for n in range(scenes)]
        served = [name for n, own in enumerate(names) for name in (own[:at] if n in condemned else own)]
        assert sorted(server.served) == sorted(served), "each call is answered once"
        assert server.peak <= most
        assert len(condemned) <= server.deaths <= 2 * len(condemned), "tried in company, then alone"
        assert traffic.condemned == len(condemned)
        async with asyncio.timeout(1):
            while traffic.clocks.stopped:  # noqa: ASYNC110 - the last scene may be condemned before the server is back
                await asyncio.sleep(0)

    asyncio.run(run())


@pytest.mark.parametrize("poisonous", [False, True])
def test_of_many_that_saw_two_deaths_small_groups_go_together(poisonous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_TRIAL", 0.0)
    scenes, seconds = 49, 0.02

    async def run() -> None:
        server = Server(seconds, downtime=0.005)
        traffic = Traffic(scenes, probe=server.probe)
        # The oldest comes last by all rules, so that one by one would take as many turns as there are scenes.
        names = [f"{n}" + " poison" * (poisonous and n == 0) for n in range(scenes)]
        ends = [asyncio.create_task(scene(traffic, server, traffic.visitor(n), [name])) for n, name in enumerate(names)]
        for death in (1, 2):
            while server.deaths < death:
                if not poisonous and server.in_flight > scenes // 2:
                    server.die()
                await asyncio.sleep(0)
        server.peak = 0
        failed = [n for n, end in enumerate(await asyncio.gather(*ends)) if end != "done"]
        assert failed == ([0] if poisonous else [])
        assert server.deaths <= 4, "together, together again, in a group, alone"
        assert 2 <= server.peak <= 7, "since the second death no more than a group at a time"
        assert sorted(server.served) == sorted(name for name in names if "poison" not in name)

    asyncio.run(run())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), kills=st.integers(1, 4))
def test_a_server_that_dies_of_itself_costs_nobody_anything(seed: int, kills: int) -> None:
    async def run() -> None:
        server = Server()
        traffic = Traffic(6, probe=server.probe)
        chance = random.Random(seed)
        names = [[f"{n}-{step}" for step in range(6)] for n in range(10)]
        scenes = asyncio.gather(*(scene(traffic, server, traffic.visitor(n), own) for n, own in enumerate(names)))
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0, 0.01))
            while not scenes.done() and not (server.alive and server.in_flight > 1):  # noqa: ASYNC110
                await asyncio.sleep(0)
            if not scenes.done():
                server.die()
        assert set(await scenes) == {"done"}
        assert sorted(server.served) == sorted(name for own in names for name in own)
        assert server.deaths == 0 or traffic.absences >= 1

    asyncio.run(run())


def test_calls_of_older_scenes_go_first() -> None:
    async def run() -> None:
        server = Server()
        traffic = Traffic(1, probe=server.probe)
        visitors = [traffic.visitor(rank) for rank in range(5)]
        tasks = [asyncio.create_task(scene(traffic, server, visitors[rank], [f"{rank}"])) for rank in (3, 4, 1, 0, 2)]
        await asyncio.gather(*tasks)
        # The first to come finds the server free; whoever waits then goes by age.
        assert server.served == ["3", "0", "1", "2", "4"]

    asyncio.run(run())


def test_there_is_room_for_a_new_scene_only_if_its_call_could_go_at_once() -> None:
    async def run() -> None:
        traffic = Traffic(2)
        await asyncio.wait_for(traffic.room(), 1)
        visitors = [traffic.visitor(0), traffic.visitor(1)]
        waiting = asyncio.create_task(traffic.room())
        await asyncio.sleep(0)
        assert not waiting.done(), "two scenes have begun and will call"
        with visitors[0].here():
            async with Turn(None):
                await asyncio.sleep(0)
                assert not waiting.done()
        await asyncio.wait_for(waiting, 1)
        traffic.left(visitors[1])
        assert traffic._has_room()

    asyncio.run(run())


def test_clocks_and_timeouts_stand_still_while_the_server_is_away() -> None:
    async def run() -> None:
        server = Server(downtime=0.3)
        traffic = Traffic(2, probe=server.probe)
        with traffic.visitor(0).here():
            began, wall = clock(), time.monotonic()
            asyncio.get_running_loop().call_later(0.001, server.die)
            await call(traffic, server, "slow", seconds=0.15)
            assert time.monotonic() - wall > 0.3
            assert clock() - began < 0.15
        assert 0.2 < traffic.clocks.seconds_stopped < 1

    asyncio.run(run())


def test_a_timeout_still_ends_a_call_when_the_server_is_well() -> None:
    async def run() -> None:
        traffic = Traffic(1, probe=Server().probe)
        with traffic.visitor(0).here():
            turn = Turn(0.01)
            with pytest.raises(TimeoutError):
                async with turn:
                    await asyncio.sleep(5)
            assert turn.expired
            async with Turn(1):  # its place is free again
                pass

    asyncio.run(run())


def test_a_server_that_stays_away_ends_everything() -> None:
    async def run() -> None:
        server = Server(downtime=60)
        notices: list[str] = []
        traffic = Traffic(2, probe=server.probe, give_up_after=0.05, on_status=notices.append)
        asyncio.get_running_loop().call_later(0.001, server.die)
        ends = await asyncio.gather(*(scene(traffic, server, traffic.visitor(n), ["a", "b"]) for n in range(5)))
        assert set(ends) == {"ModelUnavailableError"}
        assert traffic.over.is_set()
        assert traffic.gone is not None and "--give-up-after" in str(traffic.gone)
        assert "connection refused" in notices[0]

    asyncio.run(run())


def test_a_failure_while_the_server_answers_is_no_absence() -> None:
    async def run() -> None:
        server = Server()
        traffic = Traffic(2, probe=server.probe)
        with traffic.visitor(0).here():
            async with Turn(None):
                await asyncio.wait_for(traffic.lost(reached=True), 1)
        assert traffic.absences == 0 and traffic.clocks.seconds_stopped == 0

    asyncio.run(run())


@pytest.mark.parametrize("last_chance", [False, True])
def test_a_server_that_answers_with_errors_alone_is_waited_for_and_nobody_is_blamed(last_chance: bool) -> None:
    async def run() -> None:
        server = Server()
        answers: list[str | None] = [Unserving("HTTP 500"), Unserving("HTTP 500"), None] * 3

        async def probe() -> str | None:
            await asyncio.sleep(0)
            return answers.pop(0)

        told: list[str] = []
        traffic = Traffic(4, probe=probe, on_status=told.append)
        visitors = [traffic.visitor(n, last_chance=last_chance) for n in range(4)]

        async def unlucky(visitor: Visitor) -> None:
            with visitor.here():
                async with Turn(None):
                    for _ in range(3):
                        await asyncio.wait_for(traffic.lost(reached=True), 1)

        await asyncio.gather(*map(unlucky, visitors))
        assert traffic.absences == 3 and not answers and server.deaths == 0
        assert traffic.condemned == 0 and not any(visitor.condemned for visitor in visitors)
        assert sum("is away (HTTP 500)" in line for line in told) == 3

    asyncio.run(run())


def test_a_server_that_is_found_dead_while_it_is_waited_for_has_died() -> None:
    async def run() -> None:
        server = Server(downtime=0.05)

        async def probe() -> str | None:
            # At the first look after each death, its front still answers.
            if not server.alive and looks.pop(0):
                return Unserving("HTTP 500")
            return await server.probe()

        looks = [True, *[False] * 999]
        traffic = Traffic(3, probe=probe)
        names = [["poison"], ["a", "b"], ["c", "d"]]
        ends = await asyncio.gather(*(scene(traffic, server, traffic.visitor(n), own) for n, own in enumerate(names)))
        assert ends == ["CrashingQuestionError", "done", "done"]
        assert server.deaths == 2 and traffic.condemned == 1

    asyncio.run(run())


def test_a_probe_that_fails_itself_gives_everybody_an_answer() -> None:
    async def broken() -> str | None:
        raise ZeroDivisionError

    async def run() -> None:
        traffic = Traffic(2, probe=broken)
        with traffic.visitor(0).here():
            async with Turn(None):
                with pytest.raises(ModelUnavailableError, match="ZeroDivisionError"):
                    await asyncio.wait_for(traffic.lost(reached=True), 1)

    asyncio.run(run())


def test_a_last_chance_ends_with_the_first_death() -> None:
    async def run() -> None:
        server = Server()
        traffic = Traffic(2, probe=server.probe)
        assert await scene(traffic, server, traffic.visitor(0, last_chance=True), ["poison"]) == "CrashingQuestionError"
        assert server.deaths == 1

    asyncio.run(run())


def test_a_request_that_did_not_reach_the_server_is_no_suspect() -> None:
    async def run() -> None:
        server = Server(downtime=0.01)
        traffic = Traffic(2, probe=server.probe)
        server.die()
        assert await scene(traffic, server, traffic.visitor(0), ["poison free"]) == "CrashingQuestionError"
        server = Server(downtime=0.01)
        traffic = Traffic(2, probe=server.probe)
        server.die()
        assert await scene(traffic, server, traffic.visitor(0), ["harmless"]) == "done"

    asyncio.run(run())


def test_a_call_that_is_cancelled_while_it_waits_gives_its_place_back() -> None:
    async def run() -> None:
        server = Server(seconds=0.05)
        traffic = Traffic(1, probe=server.probe)
        first = asyncio.create_task(scene(traffic, server, traffic.visitor(0), ["a"]))
        second = asyncio.create_task(scene(traffic, server, traffic.visitor(1), ["b"]))
        third = asyncio.create_task(scene(traffic, server, traffic.visitor(2), ["c"]))
        await asyncio.sleep(0.01)
        second.cancel()
        assert await first == await third == "done"
        assert server.served == ["a", "c"]
        await asyncio.wait_for(traffic.room(), 1)

    asyncio.run(run())


def test_outside_of_traffic_a_turn_is_free() -> None:
    async def run() -> None:
        async with Turn(1):
            assert abs(clock() - time.monotonic()) < 1
        turn = Turn(0)
        with pytest.raises(TimeoutError):
            async with turn:
                await asyncio.sleep(1)

    asyncio.run(run())
