"""The one part of the build that pyproject.toml cannot say: a C extension that an install may do without."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("sharedfs.ops.fastpath", ["sharedfs/ops/fastpath.c"], optional=True)])
