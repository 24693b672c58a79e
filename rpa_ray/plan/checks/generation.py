"""Whether the generation config of a language model can be read and ends answers at its ids."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rpa_ray.config import ConfigError
from rpa_ray.data.errors import last_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FILE = "generation_config.json"


def check_generation(folder: Path, config: "PretrainedConfig", key: str) -> None:
    """Refuse what declares the end of an answer otherwise than by ids of the model.

    Args:
        folder: A model folder with files that are whole.
        config: The config of its architecture, which declares the ends where no file does.
        key: The config path that names it.

    Raises:
        ConfigError: with the file and what is wrong with it.
    """
    from transformers import GenerationConfig

    file = folder / FILE
    try:
        found: GenerationConfig = (
            GenerationConfig.from_dict(json.loads(file.read_text(encoding="utf-8")))
            if file.is_file()
            else GenerationConfig.from_model_config(config)
        )
    except Exception as error:  # whatever the file makes the class do
        raise ConfigError(
            key,
            f"have a {FILE} that transformers can read",
            str(file),
            f"{last_line(error)}: mend the file, or remove it.",
        ) from error
    declared, size = found.eos_token_id, config.get_text_config().vocab_size
    ends = declared if isinstance(declared, list) else [] if declared is None else [declared]
    strange = [end for end in ends if type(end) is not int or not 0 <= end < size]
    if strange:
        raise ConfigError(
            key,
            f"declare as eos_token_id ids from 0 to below its vocab_size ({size})",
            strange[0],
            f"Mend {file if file.is_file() else folder / 'config.json'}.",
        )
