"""The plain way to serve a model: FastAPI around `SentenceTransformer.encode`, as tutorials show it.

Run as ``python -m benchmarks.plain_service MODEL PORT threads|async`` by `benchmarks.serve`. Tutorials write the
function that answers with ``def``, which FastAPI runs in a pool of threads, or with ``async def``, so that texts are
encoded one request after the other.
"""

import sys
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI
from sentence_transformers import SentenceTransformer

Texts = Annotated[str | list[str], Body(embed=True)]


def app(path: str, kind: str) -> FastAPI:
    """The service of a model; ``kind`` is ``threads`` or ``async``."""
    model = SentenceTransformer(path, device="cpu")
    service = FastAPI()

    def embed(input: Texts) -> dict[str, Any]:
        texts = [input] if isinstance(input, str) else input
        vectors = model.encode(texts, normalize_embeddings=True)
        data = [{"object": "embedding", "index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]
        return {"object": "list", "data": data}

    async def embed_alone(input: Texts) -> dict[str, Any]:
        return embed(input)

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    service.post("/v1/embeddings")(embed if kind == "threads" else embed_alone)
    service.get("/health")(health)
    return service


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[1], sys.argv[3]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
