"""Run by the Python of a clip-retrieval installation: asks its real back end, and prints the answers as JSON.

usage: clip_back_client.py INDICES_PATHS CLIP_MODEL MODEL_CONFIG_FOLDER, requests [[path, body], …] on standard input.
"""

import json
import sys

import open_clip
from clip_retrieval.clip_back import ClipOptions, KnnService, MetadataService, load_clip_indices
from flask import Flask
from flask_restful import Api

indices_paths, clip_model, config_folder = sys.argv[1:]
open_clip.add_model_config(config_folder)
options = ClipOptions(
    indice_folder="",
    clip_model=clip_model,
    enable_hdf5=False,
    enable_faiss_memory_mapping=False,
    columns_to_return=[],
    reorder_metadata_by_ivf_index=False,
    enable_mclip_option=False,
    use_jit=False,
    use_arrow=False,
    provide_safety_model=False,
    provide_violence_detector=False,
    provide_aesthetic_embeddings=False,
)
resources = {"clip_resources": load_clip_indices(indices_paths, options)}
app = Flask("back")
api = Api(app)
api.add_resource(KnnService, "/knn-service", resource_class_kwargs=resources)
api.add_resource(MetadataService, "/metadata", resource_class_kwargs=resources)
client = app.test_client()
answers = [client.post(path, json=body).get_json() for path, body in json.load(sys.stdin)]
print("answers: " + json.dumps(answers))
