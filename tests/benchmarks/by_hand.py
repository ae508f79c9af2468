"""What one writes by hand: FastAPI on one uvicorn process, the whole work in the handler, row by row.

python -m tests.benchmarks.by_hand WORKLOAD PORT
"""

from __future__ import annotations

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from tests.benchmarks.workload import Chain, Fan


class Given(BaseModel):
    row: list[float]


class Answered(BaseModel):
    label: int
    probs: list[float]


def application(workload: str) -> FastAPI:
    """`POST /predict` for the chain or the fan; `GET /noop` for the least there is."""
    app = FastAPI()
    if workload != "noop":
        work = Fan() if workload == "fan" else Chain()

        @app.post("/predict")
        async def predict(given: Given) -> Answered:
            probs = work(np.asarray(given.row, np.float32)[None])[0]
            return Answered(label=int(probs.argmax()), probs=probs.tolist())

    @app.get("/noop")
    async def noop() -> PlainTextResponse:
        return PlainTextResponse("ok")

    return app


def main() -> None:
    workload, port = sys.argv[1:]
    uvicorn.run(
        application(workload),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
