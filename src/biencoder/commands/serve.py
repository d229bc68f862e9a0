"""``biencoder serve``: answers requests for vectors over HTTP."""

import ipaddress
import logging
from pathlib import Path

from biencoder.config import ServeConfig
from biencoder.config.choices import DENSE
from biencoder.errors import UserError, require_package
from biencoder.model.encoder import load_encoder
from biencoder.terminal import say

logger = logging.getLogger(__name__)
PACKAGES = ("prometheus_client", "starlette", "uvicorn")


def run(config: ServeConfig) -> None:
    """The command: load the model, and serve it until a signal comes.

    Raises:
        UserError: a package is missing, the address or a key cannot be used, or the model has no single vector a text.
    """
    for package in PACKAGES:
        require_package(package, "biencoder serve", "serve")
    from biencoder.serving.keys import VARIABLE, read_keys
    from biencoder.serving.server import address_of, bind, serve
    from biencoder.serving.service import Service

    keys = read_keys(config.api_key_file)
    with bind(config.host, config.port) as bound:
        encoder = load_encoder(config)
        if encoder.kind != DENSE:
            way = f"; add --head {DENSE}" if DENSE in encoder.settings.parts else ""
            raise UserError(f"--model {config.model}: its head is {encoder.kind}, and only {DENSE} is served{way}")
        if not keys and not ipaddress.ip_address(bound.getsockname()[0]).is_loopback:
            logger.warning("everybody who reaches %s can use the model: set %s", address_of(bound), VARIABLE)
        name = config.served_model_name or Path(config.model).resolve().name
        place = f"{name}: {encoder.dim} dimensions at http://{address_of(bound)}/v1 (Ctrl-C stops)"
        serve(Service(encoder, config, name, keys), bound, timeout=config.timeout, ready=lambda: say(place))
