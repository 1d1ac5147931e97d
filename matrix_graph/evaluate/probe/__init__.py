"""Is a model good enough for scenes? Single calls with known right answers; see the README beside this file."""
