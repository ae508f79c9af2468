"""The kinds of extensions beside plain classes and functions. Each module imports its library only when it loads.

saved.py    what torch and scikit-learn share: a folder that a `save_...` helper wrote
torch.py    a torch module with safetensors weights
sklearn.py  a scikit-learn pipeline in the skops format
mlflow.py   model versions from MLflow: ours, and plain MLflow models by their signature
fused.py    several extensions in one deployment, run one after the other
remote.py   a model of another Open Inference server (Triton, KServe, another cluster), over HTTP or gRPC
"""
