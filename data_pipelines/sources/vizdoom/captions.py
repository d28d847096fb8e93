"""The state of a game in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from data_pipelines.clip import TextEvent
from data_pipelines.sources.vizdoom.settings import Recording

if TYPE_CHECKING:
    import vizdoom

# What matters in the game, and not smoke, blood, remains and lamps.
_NAMED = ("Monster", "Player", "Health", "Armor", "Ammo", "Weapon", "Key", "PowerUp", "Hazard")
# A thing is in view if it is at least this share of the picture high.
_LEAST_HEIGHT = 1 / 32


def describe(caption: str, game: vizdoom.DoomGame, state: vizdoom.GameState) -> str:
    """Returns such as "doom: deathmatch arena; health 80, ammo 12; sees: ShotgunGuy, Zombieman"."""
    import vizdoom

    health, ammo = (
        math.ceil(game.get_game_variable(one))
        for one in (vizdoom.GameVariable.HEALTH, vizdoom.GameVariable.SELECTED_WEAPON_AMMO)
    )
    # Below zero where the weapon, or the bare hand, takes none.
    status = f"health {max(0, health)}" + (f", ammo {ammo}" if ammo >= 0 else "")
    least = _LEAST_HEIGHT * game.get_screen_height()
    labels = [label for label in state.labels or () if label.object_category in _NAMED and label.height >= least]
    seen = sorted({label.object_name for label in labels})
    return "; ".join([caption, status, *([f"sees: {', '.join(seen)}"] if seen else [])])


def events(texts: list[str], recording: Recording) -> tuple[TextEvent, ...]:
    """Returns the text of frame 0, and later ones that differ from the one before, `caption_seconds` apart."""
    apart = recording.caption_seconds * recording.frame_rate
    chosen: list[TextEvent] = []
    for frame, text in enumerate(texts):
        if not chosen or (text != chosen[-1].text and frame - chosen[-1].frame >= apart):
            chosen.append(TextEvent(frame, text))
    return tuple(chosen)
