"""A model of another Open Inference server as an extension: Triton, KServe, MLServer, or another Fenix cluster.

The server's metadata types the ports; what the tensors *mean* it does not say, so the operator gives the semantic
types. Nothing is tried twice from here: whether to try again, and where, is for the gateway to decide.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from deployments.extension import Extension, Result, Scored
from planner.cards import Kind
from planner.errors import (
    BadCard,
    BadInput,
    ExtensionBroken,
    ExtensionRaised,
    ExtensionTimeout,
    ExtensionUnavailable,
    FenixError,
    near,
)
from planner.features import DATATYPES, Array, Feature, Port

_HTTP_PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/?")
_GRPC_PATH = re.compile(r"/(?P<model>[^/]+)(?:/(?P<version>[^/]+))?/?")
_HOST = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+)(:\d{1,5})?")  # no user and password: cards are shown to everybody
# Servers close idle connections after 5 s (uvicorn) or later; sending into one that just closed would be a failure.
_IDLE_S = 4.0


class RemoteExtension(Extension):
    """Options: `types` gives a semantic type per tensor (`{"image": "image/digit"}`); `confidence` names an output
    tensor (n_rows,) that says how sure the model is (`digit.confidence` of a Fenix server); `timeout_s` bounds one
    call; `binary: false` for an HTTP server that only knows JSON; `deterministic: false` for a model that is not, and
    for one that is paid by the call or has effects: otherwise, where it has two replicas or more, the same rows may be
    sent a second time while the first call may have run.

    Raises BadCard for an address or types that do not fit, ExtensionUnavailable when the server does not answer.
    """

    kind: Kind = "remote"

    def __init__(
        self,
        address: str,
        types: Mapping[str, str] | None = None,
        confidence: str = "",
        timeout_s: float = 10.0,
        binary: bool = True,
        deterministic: bool = True,
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._confidence = confidence
        self._wire = _wire(address, binary)
        self.deterministic = deterministic
        self.site = urlsplit(address).netloc
        self.name = re.sub(r"[^A-Za-z0-9_.-]+", "-", self._wire.model).strip("-_.") or "remote"
        self._wire.open()
        try:
            metadata = self._wire.metadata(timeout_s)
        finally:
            self._wire.close()
        versions = [
            text for text in map(str, metadata.get("versions") or ()) if re.fullmatch(r"[A-Za-z0-9][\w.-]*", text)
        ]
        self.version = self._wire.version or (versions[-1] if versions else "1")
        types = dict(types or {})
        self.inputs = {port.name: port for port in _ports("input", metadata, types, but="")}
        self.outputs = {port.name: port.feature for port in _ports("output", metadata, types, but=confidence)}
        if types:
            known = [*self.inputs, *self.outputs]
            raise BadCard(f"types: {address} has no tensor {next(iter(types))!r}.", hint=near(next(iter(types)), known))

    def setup(self) -> None:
        self._wire.open()

    def close(self) -> None:
        self._wire.close()

    def infer(self, *_: Any, **inputs: Any) -> Result:
        wanted = [*self.outputs, self._confidence] if self._confidence else list(self.outputs)
        made = self._wire.infer(inputs, wanted, self._timeout_s)
        for name in wanted:
            if name not in made:
                raise ExtensionBroken(f"{self._address} gave no output {name!r}.", hint=near(name, made))
        outputs = {name: made[name] for name in self.outputs}
        if not self._confidence:
            return outputs
        sure = made[self._confidence]
        return Scored(outputs, sure[:, 0] if sure.ndim == 2 and sure.shape[1] == 1 else sure)


class _Wire(ABC):
    """How one model of a server is asked, over a connection that is kept from `open` to `close`."""

    def __init__(self, host: str, model: str, version: str) -> None:
        self.host = host
        self.model = model
        self.version = version

    @abstractmethod
    def open(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def metadata(self, timeout_s: float) -> Mapping[str, Any]:
        """`inputs` and `outputs` as lists of name, datatype and shape, and the `versions` there are."""

    @abstractmethod
    def infer(self, inputs: Mapping[str, Array], outputs: list[str], timeout_s: float) -> Mapping[str, Array]:
        """The output tensors by name. Raises StepFailed of the right kind, or BadInput when the server says so."""


class _Http(_Wire):
    def __init__(self, host: str, model: str, version: str, address: str, binary: bool) -> None:
        super().__init__(host, model, version)
        self._address = address
        self._binary = binary

    def open(self) -> None:
        import httpx

        # The environment's proxies are not for calls inside a plan.
        self._client = httpx.Client(trust_env=False, limits=httpx.Limits(keepalive_expiry=_IDLE_S))

    def close(self) -> None:
        self._client.close()

    def metadata(self, timeout_s: float) -> Mapping[str, Any]:
        return _mapping(self._address, self._ask("GET", "", timeout_s).json)

    def infer(self, inputs: Mapping[str, Array], outputs: list[str], timeout_s: float) -> Mapping[str, Array]:
        from deployments.gateway.codec import decode_reply, encode_request

        asked = encode_request(inputs, outputs=outputs, binary=self._binary)
        headers = {"content-type": "application/json"}
        if asked.header_bytes is not None:
            headers = {
                "content-type": "application/octet-stream",
                "inference-header-content-length": str(asked.header_bytes),
            }
        response = self._ask("POST", "/infer", timeout_s, content=asked.body, headers=headers)
        split = response.headers.get("inference-header-content-length", "")
        return decode_reply(response.content, int(split) if split.isdigit() else None).outputs

    def _ask(self, method: str, path: str, timeout_s: float, **request: Any) -> Any:
        import httpx

        from deployments.gateway.codec import decode_error

        try:
            response = self._client.request(method, self._address + path, timeout=timeout_s, **request)
        except httpx.TimeoutException:
            raise ExtensionTimeout(f"{self._address} did not answer within {timeout_s:g} s.") from None
        except httpx.HTTPError as error:
            raise ExtensionUnavailable(f"{self._address} cannot be reached: {error}") from None
        if response.status_code != 200:
            kind = response.headers.get("fenix-error", "")
            said = decode_error(response.status_code, response.content, kind=kind)
            raise _failed(self._address, said, str(response.status_code))
        return response


class _Grpc(_Wire):
    def open(self) -> None:
        import grpc

        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._channel = grpc.insecure_channel(self.host, options=[*unlimited, ("grpc.enable_http_proxy", 0)])

    def close(self) -> None:
        self._channel.close()

    def metadata(self, timeout_s: float) -> Mapping[str, Any]:
        from deployments.gateway.protocol import message, parse

        asked = message("ModelMetadataRequest")(name=self.model, version=self.version)
        found = parse(
            message("ModelMetadataResponse"), self._ask("ModelMetadata", asked.SerializeToString(), timeout_s)
        )
        tensors = {
            side: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(found, side)]
            for side in ("inputs", "outputs")
        }
        return {"versions": list(found.versions), **tensors}

    def infer(self, inputs: Mapping[str, Array], outputs: list[str], timeout_s: float) -> Mapping[str, Array]:
        from deployments.gateway.protocol import decode_infer_reply, encode_infer_request

        asked = encode_infer_request(self.model, inputs, version=self.version, outputs=outputs)
        return decode_infer_reply(self._ask("ModelInfer", asked, timeout_s)).outputs

    def _ask(self, method: str, asked: bytes, timeout_s: float) -> bytes:
        import grpc

        from deployments.gateway.codec import error_of

        where = f"grpc://{self.host}/{self.model}"
        call: Callable[..., bytes] = self._channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        try:
            return call(asked, timeout=timeout_s)
        except grpc.RpcError as error:
            code, said = error.code().name, error.details() or ""
            if code == "DEADLINE_EXCEEDED":
                raise ExtensionTimeout(f"{where} did not answer within {timeout_s:g} s.") from None
            kinds = dict(error.trailing_metadata() or ())
            raise _failed(where, error_of(str(kinds.get("fenix-error", "")), said), code) from None


_GONE = ("404", "503", "NOT_FOUND", "UNAVAILABLE", "UNIMPLEMENTED")
_LATE = ("504", "408", "DEADLINE_EXCEEDED")


def _failed(where: str, said: FenixError, status: str) -> FenixError:
    """What a server's error means for the step: it is the client's mistake only where a Fenix server says BadInput."""
    if type(said) is BadInput:
        return said
    kind = ExtensionUnavailable if status in _GONE else ExtensionTimeout if status in _LATE else ExtensionRaised
    return kind(f"{where} answered {status}: {said.message[:300]}")


def _wire(address: str, binary: bool) -> _Wire:
    parts = urlsplit(address)
    match = (_GRPC_PATH if parts.scheme == "grpc" else _HTTP_PATH).fullmatch(parts.path)
    if match is None or not _HOST.fullmatch(parts.netloc) or parts.query:
        raise BadCard(
            f"{address!r} is no address of a model.",
            hint="Write http://host:port/v2/models/name or grpc://host:port/name, with /versions/v or /v after it.",
        )
    model, version = unquote(match["model"]), unquote(match["version"] or "")
    if parts.scheme == "grpc":
        return _Grpc(parts.netloc, model, version)
    return _Http(parts.netloc, model, version, address.rstrip("/"), binary)


def _mapping(where: str, read: Callable[[], Any]) -> Mapping[str, Any]:
    try:
        found = read()
    except ValueError:
        found = None
    if not isinstance(found, Mapping):
        raise ExtensionBroken(f"{where} gave metadata that is not Open Inference.")
    return found


def _ports(side: str, metadata: Mapping[str, Any], types: dict[str, str], but: str) -> list[Port]:
    """The ports of one side; `but` is left out. Takes what it uses of `types`."""
    ports = []
    for tensor in metadata.get(f"{side}s") or ():
        try:
            name, datatype, shape = str(tensor["name"]), str(tensor["datatype"]), [int(d) for d in tensor["shape"]]
        except (TypeError, KeyError, ValueError):
            raise ExtensionBroken(f"the server's metadata of an {side} is not Open Inference: {tensor!r}.") from None
        if name == but:
            continue
        if datatype not in DATATYPES:
            raise BadCard(f"{side} {name!r} is {datatype}, which Fenix does not carry.")
        if not shape or shape[0] != -1:
            raise BadCard(
                f"{side} {name!r} has shape {shape}: the first dimension is not -1, so it takes no batches of rows.",
                hint="Configure the model for batches on its server.",
            )
        if name not in types:
            raise BadCard(
                f"{side} {name!r} ({datatype}{shape[1:]}) has no semantic type.",
                hint=f'Say what it means in the options: types: {{"{name}": "image/digit"}} for example.',
            )
        ports.append(Port(name, Feature(types.pop(name), datatype, tuple(shape[1:]))))
    return ports
