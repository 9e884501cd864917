"""The one part of the packaging that pyproject.toml cannot express: which packages there are.

`twisted.plugins` is listed by name because it has no __init__.py, which is how Twisted wants it, and `find_packages()`
only finds folders that have one.
"""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["twisted_storaged", "twisted_storaged.*"]), "twisted.plugins"])
