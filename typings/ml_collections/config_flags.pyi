from typing import Any

def DEFINE_config_file(
    name: str, default: str | None = None, help_string: str = ..., lock_config: bool = True
) -> Any: ...
