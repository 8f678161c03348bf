"""`sordino calibrate`: this machine's device profile, or the network profile of a link between two hosts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.errors import RecipeError
from recipes.files import write_text
from recipes.progress import Reporter

if TYPE_CHECKING:
    from secure_eval.network.links import Credentials

LISTEN = "listen"
PORT = 7341


def device(output: Path, reporter: Reporter) -> Path:
    """Measure this machine and write its device profile, a YAML file, to `output`."""
    import cost_models

    check_output(output)
    with reporter.step("measure this machine") as progress:
        found = cost_models.calibrate(progress=progress)
    return _write_profile(output, found.to_dict())


def listen(port: int, tls: Path | None, say: Callable[[str], None]) -> None:
    """Wait on all addresses of this host for one other host, and let it measure the link.

    `tls`: a file of credentials for both ends, made here if it isn't there. Raises RecipeError when the link fails.
    """
    from cost_models.network_calibration import accept, serve
    from secure_eval.network import links
    from secure_eval.network.transport import TransportError

    credentials = _credentials(tls, "server", say)
    try:
        listener = links.listen("0.0.0.0", port)
    except (OSError, OverflowError) as error:
        raise RecipeError(f"--port {port}: {error}") from None
    with listener:
        number = listener.getsockname()[1]
        also = f" --tls {tls.name}" if tls else ""
        say(f"Listening on port {number}. On the other host:")
        say(f"  sordino calibrate --network THIS_HOST:{number}{also} --output my_link.yaml")
        if not tls:
            say("Without --tls nothing is encrypted and nobody's identity is proven: random bytes are sent.")
        try:
            transport = accept(listener, credentials)
            try:
                say("Connected; the other end measures.")
                serve(transport)
            finally:
                transport.close()
        except TransportError as error:
            raise RecipeError(f"the measurement failed: {error}") from None
    say("Done. The other end has the profile.")


def network(address: str, tls: Path | None, output: Path, reporter: Reporter) -> Path:
    """Measure the link to the host at `address`, which listens, and write its network profile to `output`.

    Raises RecipeError for an address that is none, a file of credentials that is none, and a link that fails.
    """
    from cost_models.network_calibration import connect, lead
    from secure_eval.network.transport import TransportError

    host, port = parsed(address)
    check_output(output)
    credentials = _credentials(tls, "leader", None)
    try:
        transport = connect(host, port, credentials)
        try:
            with reporter.step("measure the link") as progress:
                found = lead(transport, progress=progress)
        finally:
            transport.close()
    except TransportError as error:
        raise RecipeError(
            f"--network {address}: {error}; the host there has to run `sordino calibrate --network {LISTEN} --port {port}`"
            + (", with the same file as --tls" if tls else ", and without --tls like here")
        ) from None
    return _write_profile(output, asdict(found.network(output.stem)))


def parsed(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[address]:port". Raises RecipeError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise RecipeError(
            f"--network {address!r}: allowed: {LISTEN}, or HOST:PORT of the host that listens, with a port from 1 to 65535"
        )
    return host, int(port)


def check_output(output: Path) -> None:
    """Raises RecipeError unless `output` can be a profile."""
    if output.suffix not in (".yaml", ".yml"):
        raise RecipeError(f"--output {output}: a profile is a YAML file, so its name ends in .yaml")


def _write_profile(output: Path, profile: dict[str, Any]) -> Path:
    import yaml

    write_text(output, yaml.safe_dump(profile, sort_keys=False, width=120, allow_unicode=True))
    return output


def _credentials(file: Path | None, role: str, say: Callable[[str], None] | None) -> Credentials | None:
    """This end's credentials of the file; made for both ends by the one that listens, which gives `say`."""
    from secure_eval.network.links import Credentials, issue

    if file is None:
        return None
    if say and not file.exists():
        made = {name: asdict(one) for name, one in issue(["leader", "server"]).items()}
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise RecipeError(f"--tls {file}: cannot be written: {error}") from None
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump(made, opened, indent=1)
        say(f"Wrote credentials for both ends to {file}: copy it to the other host by a safe way.")
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))[role]
        return Credentials(**{f.name: str(entry[f.name]) for f in fields(Credentials)})
    except FileNotFoundError:
        raise RecipeError(
            f"--tls {file}: no such file; the listening host makes one, and it has to be copied here"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise RecipeError(
            f"--tls {file}: holds no credentials that `--network {LISTEN} --tls` wrote"
        ) from None
