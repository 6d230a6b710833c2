"""A pytest plugin (-p other_extension): the file that GEODE_TEST_EXTENSION names takes the place of the built extension."""

from __future__ import annotations

import os
import sys
from importlib import util

NAME = "geode.native._native"

spec = util.spec_from_file_location(NAME, os.environ["GEODE_TEST_EXTENSION"])
assert spec is not None and spec.loader is not None
sys.modules[NAME] = util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[NAME])
