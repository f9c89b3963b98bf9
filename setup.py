"""Build the ring with Cython where that is possible; everything else is in pyproject.toml.

The compiled modules are optional: with no compiler, or no Cython, the same files run interpreted.
"""

import os

from setuptools import Extension, setup

COMPILED = (
    "nodma.ring.device_end",
    "nodma.ring.driver_end",
    "nodma.ring.engine",
    "nodma.ring.thread_main",
    "nodma.device.blk_engine",
    "nodma.vfio_user.stream",
)


def extensions() -> list[Extension]:
    """Describe the compiled modules; none if Cython is not there."""
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    level = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O2"]
    modules = [Extension(name, [f"src/{name.replace('.', '/')}.py"], extra_compile_args=level) for name in COMPILED]
    directives = {
        "language_level": "3",
        "boundscheck": False,  # every index is checked by hand, in the file itself
        "initializedcheck": False,
        "cdivision": True,
        "auto_pickle": False,
        "annotation_typing": False,  # the types are in the .pxd,
    }
    built: list[Extension] = cythonize(modules, compiler_directives=directives, build_dir="build/cython")
    for module in built:
        module.optional = True  # cythonize forgets it
    return built


setup(ext_modules=extensions())
