"""The commands of ``dilated-seg``: one module each, imported when it is called."""

# Lightning's own four take --config experiments/....yaml, overlays and flags; the rest are ours.
LIGHTNING = ("fit", "validate", "test", "predict")
COMMANDS = {
    "fit": "train a network: --config experiments/....yaml, then overlays and flags",
    "validate": "score a checkpoint on the validation split: --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt",
    "test": "score a checkpoint on the test split",
    "predict": "write a checkpoint's predictions on the validation split as PNGs",
    "prepare": "check a dataset as downloaded and write it as shards, to map into memory or to stream",
    "ablate": "run every experiment an ablation file names, here or on SLURM, then compare them",
    "report": "compare finished runs: one page of tables, plots, pictures, how sure the differences are",
    "describe": "a network layer by layer: sizes, parameters, multiply-adds, memory, receptive field; or all networks",
    "probe": "measure receptive fields of trained networks: how far they look, what context buys",
    "segment": "a trained network on files and folders of pictures: label pictures, overlays, probabilities",
    "tune": "search the dense CRF's numbers for a run, and write them for validate, test and predict --config",
    "export": "a trained network as ONNX, as torch.export's pt2, or as a folder for the Hugging Face Hub",
    "port": "Caffe's or torchvision's weights into one of our networks, as a safetensors file",
}
