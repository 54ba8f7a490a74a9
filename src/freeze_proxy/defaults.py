"""The cluster's defaults: the ConfigMap as the kubelet mounts it, a file for each key, replaced as a whole."""

from collections.abc import Mapping
from pathlib import Path

from freeze_proxy.annotations import defaults_trouble, usable

_LONGEST = 4096
_MOST = 64


class Defaults:
    """What the folder says; ``values`` are those that can be understood."""

    def __init__(self, folder: str | None) -> None:
        self._folder = Path(folder) if folder else None
        self._said: dict[str, str] | None = None
        self.values: Mapping[str, str] = {}

    def look(self) -> list[str] | None:
        """Read the folder again: nothing if it says what it said before, else sentences about what is wrong in it.

        Where it cannot be read, what it said before holds on.
        """
        said, troubles = self._read()
        if said is None or said == self._said:
            return troubles or None
        self._said = said
        self.values = usable(said)
        return troubles + defaults_trouble(said)

    def _read(self) -> tuple[dict[str, str] | None, list[str]]:
        if self._folder is None:
            return {}, []
        said, troubles = {}, []
        try:
            # Kubelets keep the versions of a ConfigMap in entries that begin with two dots.
            paths = [path for path in sorted(self._folder.iterdir()) if not path.name.startswith("..")]
            for path in paths[:_MOST]:
                if not path.is_file():
                    continue
                with path.open("rb") as file:
                    content = file.read(_LONGEST + 1)
                if len(content) > _LONGEST:
                    troubles.append(f"{path.name}: it is longer than {_LONGEST} bytes.")
                    continue
                said[path.name] = content.decode(errors="replace").strip()
        except FileNotFoundError:
            # There is no ConfigMap, or it is being replaced: the next look sees it whole.
            return (said if self._said is None else None), []
        except OSError as error:
            return None, [f"{self._folder} cannot be read: {error.strerror}."]
        return said, troubles
