"""The files of a model whose queries take their weights from a table: sentence-transformers' ``Router``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from biencoder.errors import UserError
from biencoder.model.files.heads.dense_layers import WEIGHTS, write_weights
from biencoder.model.files.json_files import inside, read_json, write_json

ROUTER, TABLE = "Router", "SparseStaticEmbedding"
QUERY, DOCUMENT = "query", "document"  # the two routes
STRUCTURE = "router_config.json"
PLACE = f"{QUERY}_0_{TABLE}"
TYPES = (
    "sentence_transformers.base.modules.router.Router",
    ("sentence_transformers.sparse_encoder.modules.sparse_static_embedding.SparseStaticEmbedding"),
)


def read_router(place: Path) -> list[tuple[str, Path]]:
    """The modules that passages go through, then the table: the kind and the folder of each.

    Args:
        place: folder of the ``Router``.

    Raises:
        UserError: queries have no table alone, or a damaged file.
    """
    path = place / STRUCTURE
    found = read_json(path)
    if found is None:
        raise UserError(f"{path}: missing, though modules.json names a {ROUTER}")
    types, structure = found.get("types"), found.get("structure")
    if not isinstance(types, dict) or not isinstance(structure, dict):
        raise UserError(f"{path}: types and structure must be JSON objects")
    routes = {}
    for route in (QUERY, DOCUMENT):
        names = structure.get(route)
        if not isinstance(names, list) or not all(isinstance(name, str) and name in types for name in names):
            raise UserError(f"{path}: structure must list, for {route}, names of modules that are in types")
        routes[route] = [(str(types[name]).rsplit(".", 1)[-1], inside(place, name)) for name in names]
    if [kind for kind, _ in routes[QUERY]] != [TABLE]:
        kinds = ", ".join(kind for kind, _ in routes[QUERY])
        raise UserError(f"{path}: queries go through {kinds or 'nothing'}; biencoder runs {ROUTER}s with {TABLE} only")
    _check_table(routes[QUERY][0][1])
    return routes[DOCUMENT] + routes[QUERY]


def _check_table(place: Path) -> None:
    path = place / "config.json"
    if (source := (read_json(path) or {}).get("path")) is not None:
        raise UserError(
            f"{path}: the weights are in {source!r}; biencoder reads {WEIGHTS} only. Load the model with "
            "sentence-transformers and save it again"
        )


def write_router(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Put a table for queries before the modules that the folder has, which passages go through.

    Args:
        folder: of a model, whole without the table.
        weights: ``weight`` ``[V]``, of each token.
    """
    modules: list[dict[str, Any]] = read_json(folder / "modules.json", list)
    write_json(folder / PLACE / "config.json", {"frozen": False})
    write_weights(folder / PLACE, weights)
    router, table = TYPES
    types = {PLACE: table} | {module["path"]: module["type"] for module in modules}
    structure = {QUERY: [PLACE], DOCUMENT: [module["path"] for module in modules]}
    parameters = {"default_route": DOCUMENT, "allow_empty_key": True}
    write_json(folder / STRUCTURE, {"types": types, "structure": structure, "parameters": parameters})
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": router}])
