"""Wire and domain of the one API that the gateway answers itself."""

import os
from typing import Any

from carina.api.containerd.services.introspection.v1 import ServerResponse
from carina.api.google.protobuf import Empty
from carina.introspection import Introspection
from carina.introspection.server import IntrospectionService
from gatewayd.routes import PLUGIN_INFO


class GatewayIntrospection(IntrospectionService):
    """Introspection but for PluginInfo, which is passed on."""

    def __init__(self, introspection: Introspection, *, identity: str, pid_namespace: int) -> None:
        super().__init__(introspection)
        self._server = ServerResponse(uuid=identity, pid=os.getpid(), pidns=pid_namespace)

    async def server(self, message: Empty) -> ServerResponse:
        return self._server

    def __mapping__(self) -> dict[str, Any]:
        return {path: handler for path, handler in super().__mapping__().items() if path != PLUGIN_INFO}
