"""One MLflow server in one process: the tracking API over SQLite and local artifacts, under `state_dir`.

`mlflow server` does the same with two processes, the second of which imports everything again: 250 MiB and, on two
cores, 3 s of each `fenix up` more. This is the only place that knows how MLflow's server takes its configuration.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main(state_dir: Path, host: str, port: int) -> None:
    """Serves until SIGTERM. Makes the database, or migrates it to the installed MLflow's schema."""
    import uvicorn
    from mlflow.server import constants
    from mlflow.server.handlers import initialize_backend_stores

    database = f"sqlite:///{state_dir / 'mlflow.db'}"
    root = "mlflow-artifacts:/"
    os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = database
    os.environ[constants.REGISTRY_STORE_URI_ENV_VAR] = database
    os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = root
    os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = str(state_dir / "artifacts")
    os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
    initialize_backend_stores(database, database, root)
    # Access logs of every poll would fill the disk and hide what matters.
    uvicorn.run("mlflow.server.fastapi_app:app", host=host, port=port, access_log=False, log_level="warning")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
