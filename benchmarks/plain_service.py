"""The plain way to serve a model: FastAPI around `SentenceTransformer.encode`, as tutorials show it.

Run as ``python -m benchmarks.plain_service MODEL PORT threads|async`` by `benchmarks.serve`. Tutorials write the
function that answers with ``def``, which FastAPI runs in a pool of threads, or with ``async def``, so that texts are
encoded one request after the other.
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer


class Asked(BaseModel):
    input: str | list[str]


def app(path: str, kind: str) -> FastAPI:
    """The service of a model; ``kind`` is ``threads`` or ``async``."""
    model = SentenceTransformer(path, device="cpu")
    service = FastAPI()

    def embed(asked: Asked) -> dict[str, Any]:
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        vectors = model.encode(texts, normalize_embeddings=True)
        data = [{"object": "embedding", "index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]
        return {"object": "list", "data": data}

    async def embed_alone(asked: Asked) -> dict[str, Any]:
        return embed(asked)

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    service.post("/v1/embeddings")(embed if kind == "threads" else embed_alone)
    service.get("/health")(health)
    return service


if __name__ == "__main__":
    uvicorn.run(app(sys.argv[1], sys.argv[3]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
