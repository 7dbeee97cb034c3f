"""The commands of ``dilated-seg``: one module each, imported when it is called."""

# Lightning's four read an experiment with --config, overlays and options; the others are in this package.
LIGHTNING = ("fit", "validate", "test", "predict")
COMMANDS = {
    "fit": "train a network: --config experiments/....yaml, then overlays and options",
    "validate": "evaluate a trained network on the validation split",
    "test": "evaluate a trained network on the test split",
    "predict": "write a trained network's predictions of the validation split as PNGs",
    "prepare": "check a downloaded dataset and write it as shards, to map into memory or to stream",
    "ablate": "train and compare all experiments of an ablation file, here or on SLURM",
    "report": "compare finished runs on one page: tables, plots, images, significance of the differences",
    "describe": "print a network's layers: sizes, parameters, multiply-adds, memory, receptive field; or all networks",
    "probe": "measure receptive fields of trained networks, and what their context contributes",
    "segment": "segment files and directories of images: masks, overlays, probabilities",
    "tune": "tune the dense CRF's parameters on a run and write them as an overlay for --config",
    "export": "export a trained network as ONNX, as a torch.export program, or as a directory for the Hugging Face Hub",
    "port": "convert Caffe or torchvision weights for one of our networks into a safetensors file",
    "completion": "print a shell script that completes commands, options and class names",
}
