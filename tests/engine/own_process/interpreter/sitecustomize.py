"""On the path of workers that vLLM spawns for its V2 runner: they need Triton's interpreter before
they import vLLM."""

import tests.engine.conftest  # noqa: F401
