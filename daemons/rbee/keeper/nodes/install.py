"""Sets a node up: packages, credentials, configuration, and its hive's first report; a second run changes nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rbee.host.identity import key_pem, new_key, request_for
from rbee.keeper import session
from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes import layout, preflight, queen
from rbee.keeper.nodes.failures import StepFailed
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.source import PACKAGES, AptLine, Deb, DebFolder, Source, debs_in, parse
from rbee.keeper.nodes.steps import Note, Steps
from rbee.keeper.nodes.wait import Since, await_report
from rbee.wire.nodes import (
    CertifyRequest,
    Enrolment,
    EnrolRequest,
    Node,
    NodeDetails,
    NodeTls,
    NodeUpdate,
    TokenDigests,
)

APT = (
    "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y",
    "-o", "Dpkg::Options::=--force-confold", "-o", "DPkg::Lock::Timeout=60",
)  # fmt: skip
APT_SILENCE_S = 600.0
HIVE_UNITS = ("rbee-hive.socket", "rbee-hive.service")
REPORT_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A node that is to be set up, from where; ``hive`` are keys of hive.yaml that its operator sets."""

    details: NodeDetails
    source: Source
    hive: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tls(self) -> bool:
        """Whether it speaks mutual TLS."""
        return self.details.tls is NodeTls.MUTUAL

    @property
    def address(self) -> str:
        """Where its hive and workers listen."""
        return self.details.addresses[0]


def plan_of(node: Node, given: str | None, keyring: str | None, hive: Mapping[str, Any] | None = None) -> Plan:
    """How a node is to be set up: from ``given``, else from where the registry or this command's configuration says.

    Raises CommandFailed where the queen cannot enrol it yet, and where nothing says where packages come from.
    """
    name = node.details.name
    if node.problem and not node.enrolled:
        raise CommandFailed(f"node {name} cannot be set up yet: {node.problem}")
    source = source_of(node, given, keyring)
    if source is None:
        raise CommandFailed(
            "where do the packages come from? Name a folder of .deb files or an apt line with --packages, or as "
            "node_packages in this command's configuration (rbee config init)"
        )
    return Plan(node.details, source, hive or {})


def source_of(node: Node, given: str | None, keyring: str | None) -> Source | None:
    """Where a node's packages come from; None where nothing says it. Raises CommandFailed for what is no source."""
    chosen = session.settings()
    named = given or node.details.source or chosen.node_packages
    return parse(named, keyring or chosen.node_keyring) if named else None


def install(root: Root, plan: Plan, steps: Steps) -> None:
    """Every step in order; raises what SSH and the queen raise, StepFailed, CommandFailed."""
    name = plan.details.name
    with steps.step("packages") as note:
        _packages(root, plan.source, note)
    with steps.step("credentials") as note:
        enrolment = _credentials(root, plan, note)
    with steps.step("configuration") as note:
        _configuration(root, plan, enrolment, note)
    since = Since.now()
    with steps.step("start") as note:
        _start(root, note, restart=steps.changed)
    with steps.step("first report") as note:
        node = await_report(name, since, REPORT_LIMIT_S, restarted=steps.done[-1].changed)
        note.told = f"hive {node.hive_version} is {node.status.value}"
    version = preflight.package_version(root.ssh, preflight.HIVE_PACKAGE)
    queen.update(NodeUpdate(name=name, version=version, connected=True))


# packages


def _packages(root: Root, source: Source, note: Note) -> None:
    if isinstance(source, AptLine):
        _from_apt(root, source, note)
    else:
        _from_folder(root, source, note)


def _from_apt(root: Root, source: AptLine, note: Note) -> None:
    before = _versions(root)
    if source.keyring is not None:
        with root.folder() as folder:
            with root.ssh.files() as sftp:
                sftp.put(str(source.keyring), f"{folder}/keyring")
            root.run(["install", "-D", "-m", "0644", f"{folder}/keyring", layout.KEYRING])
    root.write(layout.SOURCES, f"{source.line}\n", 0o644)
    root.run([*APT, "update"], limit_s=APT_SILENCE_S)
    root.run([*APT, "install", *PACKAGES], limit_s=APT_SILENCE_S)
    after = _versions(root)
    note.changed, note.told = after != before, ", ".join(f"{name} {version}" for name, version in after.items())


def _from_folder(root: Root, source: DebFolder, note: Note) -> None:
    debs = debs_in(source.path, preflight.release(root.ssh))
    note.told = ", ".join(f"{deb.name} {deb.version}" for deb in debs)
    there = _versions(root)
    missing = [deb for deb in debs if there[deb.name] != deb.version]
    if not missing:
        return
    note.changed = True
    with root.folder() as folder:
        with root.ssh.files() as sftp:
            for deb in missing:
                sftp.put(str(deb.path), f"{folder}/{deb.path.name}")
        root.run(["chmod", "-R", "a+rX", folder])  # apt reads them as a user of its own
        files = [f"{folder}/{deb.path.name}" for deb in missing]
        root.run([*APT, "install", "--allow-downgrades", *files], limit_s=APT_SILENCE_S)
    _check_installed(root, debs)


def _check_installed(root: Root, debs: list[Deb]) -> None:
    there = _versions(root)
    for deb in debs:
        if there[deb.name] != deb.version:
            raise StepFailed(f"apt ended well, but {deb.name} is {there[deb.name] or 'absent'} and not {deb.version}")


def _versions(root: Root) -> dict[str, str]:
    return {name: preflight.package_version(root.ssh, name) for name in PACKAGES}


# credentials


def _credentials(root: Root, plan: Plan, note: Note) -> Enrolment:
    have = TokenDigests(**{name: root.digest(path) for name, path in layout.TOKEN_FILES.items()})
    enrolment = queen.enrol(EnrolRequest(plan.details.name, have, root.certificate()))
    put_credentials(root, plan.details.name, enrolment, note)
    return enrolment


def put_credentials(root: Root, name: str, enrolment: Enrolment, note: Note) -> None:
    """Write what the queen gave: tokens that only root reads, the authority, a key and the certificate for it."""
    if enrolment.tokens is not None:
        for token, path in layout.TOKEN_FILES.items():
            root.write(path, f"{getattr(enrolment.tokens, token)}\n", 0o600)
        note.changed, note.told = True, "tokens"
    if enrolment.authority is not None:
        note.changed |= root.write(layout.AUTHORITY, enrolment.authority, 0o644)
    if enrolment.certify:
        key = new_key()
        certified = queen.certify(CertifyRequest(name, request_for(key, name)))
        # workers read the key as the folder's group; the hive, its owner, puts renewed certificates there
        root.run(["install", "-d", "-m", "2750", "-o", "rbee-hive", "-g", "rbee-worker", "--", layout.TLS_FOLDER])
        root.write(layout.KEY, key_pem(key), 0o640, owner="rbee-hive:rbee-worker")
        root.write(layout.CERTIFICATE, certified.certificate, 0o644, owner="rbee-hive:rbee-worker")
        note.changed, note.told = True, f"{note.told} and a certificate".removeprefix(" and ")


# configuration


def _configuration(root: Root, plan: Plan, enrolment: Enrolment, note: Note) -> None:
    url, address, tls = enrolment.callback_url, plan.address, plan.tls
    hive = layout.hive_yaml(
        root.read(layout.HIVE_YAML),
        name=plan.details.name,
        address=address,
        callback_url=url,
        tls=tls,
        settings=plan.hive,
    )
    worker = layout.worker_yaml(root.read(layout.WORKER_YAML), address=address, tls=tls)
    allowed = [*_addresses_of(root, urlsplit(url).hostname or ""), *plan.details.addresses]
    texts = {
        layout.HIVE_YAML: hive,
        layout.WORKER_YAML: worker,
        layout.SOCKET_DROP_IN: layout.socket_drop_in(address),
        layout.WORKER_DROP_IN: layout.worker_drop_in(allowed),
    }
    written = [path for path, text in texts.items() if root.write(path, text, 0o644)]
    note.changed, note.told = bool(written), ", ".join(path.rpartition("/")[2] for path in written)
    if any(path in layout.DROP_INS for path in written):
        root.run(["systemctl", "daemon-reload"])


def _addresses_of(root: Root, host: str) -> list[str]:
    """The queen's addresses as the node's resolver has them."""
    lines = root.ssh.run(["getent", "ahosts", host], check=False).out.splitlines()
    found = dict.fromkeys(line.split()[0] for line in lines if line)
    if not found:
        raise StepFailed(f"the node cannot find the queen's host {host}: set public_url to an address that it reaches")
    return list(found)


# start


def _start(root: Root, note: Note, *, restart: bool) -> None:
    units = {name: root.unit(name) for name in HIVE_UNITS}
    running = all(unit.active == "active" for unit in units.values())
    if restart or not running:
        root.run(["systemctl", "stop", *reversed(HIVE_UNITS)])
        root.run(["systemctl", "reset-failed", *HIVE_UNITS], check=False)
        root.run(["systemctl", "enable", "--now", *HIVE_UNITS], limit_s=120.0)
        note.changed = True
    note.told = root.unit("rbee-hive.service").line
