"""Property tests have no deadline: on a shared machine the time of one example says nothing."""

from hypothesis import settings

settings.register_profile("matrix_graph", deadline=None)
settings.load_profile("matrix_graph")
