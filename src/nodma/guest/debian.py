"""Fetch Debian packages, and unpack them into a directory of their own.

apt chooses, fetches and verifies (its signatures, its keyring), with a state of its own beside the system's, which
it neither reads nor changes. Packages are unpacked and not installed: no script of theirs runs, and no root is needed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nodma.errors import GuestError, Unavailable
from nodma.guest.command import environment, last_lines, run

SUITES: Final = ("bookworm", "trixie", "trixie-backports")
"""Where packages come from. Of each, the newest cloud kernel is taken: 6.1, 6.12, and one that is newer."""

_PREFERENCES: Final = {"bookworm": 100, "trixie": 900, "trixie-backports": 950}
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_OS_RELEASE: Final = Path("/etc/os-release")
_PLANNED: Final = re.compile(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", re.MULTILINE)
_DOWNLOAD_STATUS: Final = re.compile(r"dlstatus:\d+:([\d.]+):")

_UNPACK: Final = 'dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink $3 -C "$2"'
"""Unlike ``dpkg-deb -x`` this keeps /lib, a link, where an older package has it as a directory."""

Progress = Callable[[str, float], None]
"""Called with what is being done, and how much of it is: 0 to 1."""


@dataclass(frozen=True, slots=True)
class DebianKernel:
    """A kernel of Debian's as packages: ``release`` is what ``uname -r`` says, as in 6.12.117+deb13-cloud-amd64."""

    suite: str
    release: str
    version: str

    @property
    def packages(self) -> tuple[str, str]:
        """The kernel and what modules for it are built with."""
        return f"linux-image-{self.release}", f"linux-headers-{self.release}"


def host_mirror() -> str | None:
    """Return the Debian mirror that this machine's apt uses; None if it is not Debian's."""
    try:
        fields = dict(line.split("=", 1) for line in _OS_RELEASE.read_text().splitlines() if "=" in line)
        codename = fields["VERSION_CODENAME"].strip('"')
        if fields["ID"].strip('"') != "debian":
            return None
        targets = run(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)"], "asking apt for its mirror")
    except (OSError, KeyError, GuestError):
        return None
    for line in targets.splitlines():
        release, _, uri = line.partition(" ")
        if release == codename and uri:
            return uri.rstrip("/")
    return None


def tools_problem() -> str | None:
    """Return why packages cannot be fetched and unpacked here; None if the programs for it run."""
    for program in ("apt-get", "dpkg-deb", "tar"):
        try:
            run([program, "--version"], "fetching and unpacking Debian packages", seconds=30)
        except GuestError as error:
            return str(error)
    return None


class Apt:
    """apt-get with its state in ``directory``. Raises UsageError if this machine has no apt, or no keyring."""

    def __init__(self, directory: Path, mirror: str) -> None:
        if missing := tools_problem():
            raise Unavailable(f"{missing}; without them, name your own --qemu and --kernel")
        if not _KEYRING.exists():
            raise Unavailable(f"{_KEYRING} is missing: apt-get install debian-archive-keyring")
        self._directory = directory
        self._archives = directory / "archives"
        for place in (directory / "lists" / "partial", self._archives / "partial"):
            place.mkdir(parents=True, exist_ok=True)
        (directory / "status").touch()
        (directory / "sources.list").write_text(
            "".join(f"deb [arch=amd64 signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in SUITES)
        )
        (directory / "preferences").write_text(
            "\n".join(f"Package: *\nPin: release n={suite}\nPin-Priority: {_PREFERENCES[suite]}\n" for suite in SUITES)
        )
        nothing = os.devnull
        self._options = [
            f"-o{name}={value}"
            for name, value in {
                "Dir::State": directory,
                "Dir::State::status": directory / "status",
                "Dir::Cache": directory,
                "Dir::Etc::sourcelist": directory / "sources.list",
                "Dir::Etc::sourceparts": nothing,
                "Dir::Etc::preferences": directory / "preferences",
                "Dir::Etc::preferencesparts": nothing,
                "Dir::Log": directory,
                "APT::Architecture": "amd64",
                "APT::Architectures::": "amd64",
                "APT::Install-Recommends": "false",
                "APT::Sandbox::User": "",
                "APT::Get::List-Cleanup": "false",
                "Acquire::Languages": "none",
                "Acquire::Retries": "3",
            }.items()
        ]

    def update(self) -> None:
        """Fetch the lists of packages. Raises GuestError."""
        run(["apt-get", *self._options, "update", "--error-on=any"], "fetching Debian's lists of packages")

    def kernels(self, flavour: str, suites: Iterable[str] = SUITES) -> list[DebianKernel]:
        """Return the newest kernel of each suite in a flavour, as in ``cloud-amd64``. Raises GuestError."""
        name = f"linux-headers-{flavour}"
        records = run(["apt-cache", *self._options, "show", name], "looking for kernels")
        policy = run(["apt-cache", *self._options, "madison", name], "looking for kernels")
        releases = {}
        for record in records.split("\n\n"):
            version = re.search(r"^Version: (\S+)$", record, re.MULTILINE)
            release = re.search(rf"linux-headers-(\d\S*-{flavour})\b", record)
            if version and release:
                releases[version[1]] = release[1]
        found = []
        for suite in suites:
            versions = re.findall(rf"\| +(\S+) \| \S+ {suite}/main ", policy)
            if not versions or versions[0] not in releases:
                raise GuestError(f"the mirror has no kernel {flavour} in the suite {suite}")
            found.append(DebianKernel(suite, releases[versions[0]], versions[0]))
        return found

    def download(self, packages: Iterable[str], progress: Progress) -> list[Path]:
        """Fetch packages and all that they need; return their files. What is there already is not fetched again.

        Raises GuestError with apt's last lines.
        """
        wanted = ["apt-get", *self._options, "install", "-y", "--no-install-recommends", *packages]
        plan = run([*wanted, "--simulate"], "choosing packages")
        reader, writer = os.pipe()
        log = self._directory / "download.log"
        with log.open("wb") as output:
            fetching = subprocess.Popen(
                [*wanted, "--download-only", f"-oAPT::Status-Fd={writer}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[writer],
                env=environment(),
            )
        os.close(writer)
        with os.fdopen(reader) as status:
            for line in status:
                if match := _DOWNLOAD_STATUS.match(line):
                    progress("fetching packages", float(match[1]) / 100)
        if fetching.wait():
            raise GuestError(f"fetching packages failed; all of it is in {log}:\n{last_lines(log.read_text())}")
        files = [
            self._archives / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
            for name, version, architecture in _PLANNED.findall(plan)
        ]
        missing = [file.name for file in files if not file.exists()]
        if missing or not files:
            raise GuestError(f"apt did not fetch {', '.join(missing[:5]) or 'anything'}; see {log}")
        return files


def unpack(packages: list[Path], root: Path, progress: Progress) -> None:
    """Unpack packages into ``root``, which must not exist. It is there only when all of them are.

    Raises GuestError, with what dpkg-deb said.
    """
    growing = root.with_name(f"{root.name}.partial")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):  # Debian's merged /usr: older packages still name these
        (growing / "usr" / name).mkdir(parents=True)
        (growing / name).symlink_to(f"usr/{name}")
    unpack_more(packages, growing, progress)
    for link, target in _alternatives(growing):
        link.symlink_to(target)
    growing.rename(root)


def unpack_more(packages: list[Path], root: Path, progress: Progress, *, replace: bool = True) -> None:
    """Unpack packages into ``root``; without ``replace``, what is there stays as it is, for those who use it.

    Raises GuestError, with what dpkg-deb said.
    """
    option = "--overwrite" if replace else "--skip-old-files"

    def unpack_one(package: Path) -> None:
        run(["sh", "-c", _UNPACK, "sh", package, root, option], f"unpacking {package.name}")

    with ThreadPoolExecutor(os.cpu_count()) as workers:
        for done, _ in enumerate(workers.map(unpack_one, packages), 1):
            progress("unpacking packages", done / len(packages))


def _alternatives(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the links that installing would have made, and that something here needs."""
    if not (root / "usr/bin/awk").exists():
        yield root / "usr/bin/awk", "mawk"
