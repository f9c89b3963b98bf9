"""What a user installs: a wheel and an sdist, each in an empty environment, used by an ordinary user of Debian."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

import nodma
from nodma.guest import Kit
from nodma.guest.kernel import MODULE_SOURCE

pytestmark = [pytest.mark.timeout(900), pytest.mark.distribution_kernel]

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache")
USERS_PATH = "/usr/local/bin:/usr/bin:/bin"
"""An ordinary user's on Debian: no /usr/sbin."""


@dataclass(frozen=True)
class User:
    """Somebody who is not root, with a home."""

    name: str
    home: Path
    python: Path = Path()

    def run(self, command: str, *, seconds: float = 600) -> str:
        """Run a line of shell in the home directory; it must succeed. Return what it printed."""
        line = f"cd {self.home} && {command}"
        words = ["sh", "-c", line]
        if os.geteuid() == 0 and self.name != "root":
            words = ["su", "-s", "/bin/sh", self.name, "-c", f"export PATH={USERS_PATH}; {line}"]
        environment = {"PATH": USERS_PATH, "HOME": str(self.home)}
        environment |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout


def with_python(user: User) -> User:
    """The same, with a Python of our version that may be run by that user; root's own is of no use."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    places = [Path(sys.executable).resolve(), *(Path(place) / f"python{version}" for place in USERS_PATH.split(":"))]
    for python in places:
        with contextlib.suppress(AssertionError):
            user.run(f"{python} -c 'import ensurepip, venv'")
            return dataclasses.replace(user, python=python)
    pytest.fail(f"no Python {version} with venv that {user.name} may run: tried {', '.join(map(str, places))}")


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """A user made for these tests; where we are not root, the one who runs them, with a home of its own."""
    home = Path(tempfile.mkdtemp(prefix="nodma-home-"))
    try:
        if os.geteuid():
            yield with_python(User(pwd.getpwuid(os.geteuid()).pw_name, home))
            return
        name = f"nodma-test-{os.getpid()}"
        subprocess.run([shutil.which("useradd", path="/usr/sbin") or "useradd", "-d", home, name], check=True)
        try:
            shutil.chown(home, name)
            yield with_python(User(name, home))
        finally:
            subprocess.run(["/usr/sbin/userdel", name], check=True, capture_output=True)
    finally:
        shutil.rmtree(home)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, made of a fresh copy of this tree, and the wheel, made of the sdist."""
    work = tmp_path_factory.mktemp("packages")
    shutil.copytree(ROOT, work / "tree", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", work / "dist", work / "tree"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = {path.suffix: path for path in (work / "dist").iterdir()}
    return {"sdist": found[".gz"], "wheel": found[".whl"], "tree": work / "tree"}


@pytest.fixture(scope="module")
def environments(packages: dict[str, Path], user: User) -> dict[str, Path]:
    """An empty environment for each, with the package installed by pip and nothing but pip.

    The sdist is installed as where there is no C compiler.
    """
    made = {}
    for kind in ("sdist", "wheel"):
        package = packages[kind]
        given = user.home / package.name
        shutil.copy(package, given)
        given.chmod(0o644)
        compiler = "CC=false " if kind == "sdist" else ""
        install = f"{kind}/bin/pip install --no-cache-dir -q '{given}[guest]'"
        user.run(f"{user.python} -m venv {kind} && {compiler}{install}")
        made[kind] = user.home / kind / "bin"
    return made


@pytest.fixture(scope="module")
def users_kit(kit: Kit, user: User) -> Path:
    """A kit of the user's own, fetched already: the files are the kit's, the directories the user's."""
    place = user.home / "kit"
    place.mkdir()
    shutil.copy(kit.directory / "kit.json", place)
    copy = ["cp", "-a", "--link", kit.root, place]
    if subprocess.run(copy, capture_output=True, check=False).returncode:  # another file system
        shutil.rmtree(place / "root", ignore_errors=True)
        subprocess.run(["cp", "-a", kit.root, place], check=True)
    if os.geteuid() == 0:
        subprocess.run(["find", place, "-type", "d", "-exec", "chown", user.name, "{}", "+"], check=True)
    return place


def names_in(package: Path) -> set[str]:
    """The files of a package, as they lie below nodma's own directory."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return {name.removeprefix("nodma/") for name in wheel.namelist()}
    with tarfile.open(package) as sdist:
        return {name.partition("/src/nodma/")[2] for name in sdist.getnames()}


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_a_package_has_what_guests_need(kind: str, packages: dict[str, Path]) -> None:
    names = names_in(packages[kind])
    module = {f"guest/linux/{path.name}" for path in MODULE_SOURCE.iterdir()}
    assert {"guest/linux/main.c", "guest/linux/COPYING", "guest/linux/VERSION"} <= module
    assert module <= names
    package = packages["tree"] / "src" / "nodma"
    assert {str(path.relative_to(package)) for path in package.rglob("*.py")} <= names
    assert {"guest/init.sh", "guest/prove.sh", "py.typed"} <= names
    assert not [name for name in names if name.endswith(".c") and not name.startswith("guest/linux/")]


def test_the_metadata_name_both_licences(packages: dict[str, Path]) -> None:
    with zipfile.ZipFile(packages["wheel"]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(wheel.read(name).decode())
        texts = {name.rpartition("/")[2] for name in wheel.namelist() if ".dist-info/licenses/" in name}
    assert metadata["Version"] == nodma.__version__
    assert metadata["License-Expression"] == "MIT AND GPL-2.0-only"
    assert texts == {"LICENSE", "COPYING"}
    assert metadata.get_all("Project-URL")


@pytest.mark.parametrize(("kind", "compiled"), [("sdist", False), ("wheel", True)])
def test_an_installed_package_runs_the_demo(
    kind: str, compiled: bool, environments: dict[str, Path], user: User
) -> None:
    python = environments[kind] / "python"
    assert user.run(f"{python} -c 'from nodma.ring import COMPILED; print(COMPILED)'") == f"{compiled}\n"
    said = user.run(f"{environments[kind]}/nodma demo --files 100 --requests 3000")
    assert "What held" in said
    assert nodma.__version__ in user.run(f"{environments[kind]}/nodma --version")


@pytest.mark.parametrize("kind", ["wheel"])
def test_an_ordinary_user_sets_up_and_runs_a_guest(
    kind: str, environments: dict[str, Path], users_kit: Path, user: User
) -> None:
    """``setup`` builds the module, from the sources of the package that is installed."""
    program, place = environments[kind] / "nodma", shlex.quote(str(users_kit))
    user.run(f"rm -rf {place}/modules && {program} guest setup --kit {place}")
    assert len(list((users_kit / "modules").glob("*/nodma.ko"))) == 3
    said = user.run(f"{program} guest doctor --kit {place}")
    assert "Guests can be run." in said
    user.run("truncate -s 1M disk.img && echo 'test -b $(disk) && cp /proc/version /out' > job")
    user.run(f"{program} guest run --kit {place} --disk disk.img --script job --out out && grep -q Linux out/version")
