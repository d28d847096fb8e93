"""Where to play: the scenarios that come with ViZDoom, and the maps of Freedoom."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

# One schema for every scenario, so that all of them fit in one dataset; the policy leaves out what a scenario
# is not about.
ACTION_NAMES = (
    "move_forward",
    "move_backward",
    "move_left",
    "move_right",
    "turn_left",
    "turn_right",
    "attack",
    "use",
)

_TURN = ("turn_left", "turn_right", "attack")
_STRAFE = ("move_left", "move_right", "attack")
_COLLECT = ("move_forward", "turn_left", "turn_right")
_WALK = ("move_forward", "move_left", "move_right", "turn_left", "turn_right")


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A place to play in.

    Attributes:
        config: name of a configuration bundled with ViZDoom, without its ending.
        caption: text in force from frame 0 on.
        buttons: what the policy presses, of ACTION_NAMES.
        game: the Freedoom file with textures, monsters and sounds.
        level: map to load; None keeps the map of the configuration.
        arguments: for the engine's command line.
    """

    config: str
    caption: str
    buttons: tuple[str, ...] = ACTION_NAMES
    game: str = "freedoom2.wad"
    level: str | None = None
    arguments: str = ""


# Their maps have starting places for opponents only: without this the engine has nowhere to put the player, and
# takes the process down.
_DEATHMATCH = "+deathmatch 1"

# All configurations that come with ViZDoom. Those of the commercial games play Freedoom, and "oblige", whose maps come
# from a program of that name, plays Freedoom's.
SCENARIOS: Mapping[str, Scenario] = {
    "basic": Scenario("basic", "doom: shoot the monster at the far wall", _STRAFE),
    "defend_the_center": Scenario("defend_the_center", "doom: defend the center", _TURN),
    "defend_the_line": Scenario("defend_the_line", "doom: defend the line", _TURN),
    "health_gathering": Scenario("health_gathering", "doom: gather health on the acid floor", _COLLECT),
    "take_cover": Scenario("take_cover", "doom: take cover from the fireballs", ("move_left", "move_right")),
    "deathmatch": Scenario("deathmatch", "doom: deathmatch arena"),
    "basic_audio": Scenario("basic_audio", "doom: shoot the monster that is heard and not seen", _STRAFE),
    "basic_notifications": Scenario("basic_notifications", "doom: shoot one of three monsters", _STRAFE),
    "cig": Scenario("cig", "doom: competition arena", arguments=_DEATHMATCH),
    "deadly_corridor": Scenario("deadly_corridor", "doom: run down the corridor to the armor"),
    "doom": Scenario("doom", "doom: freedoom1 e1m1", game="freedoom1.wad"),
    "doom2": Scenario("doom2", "doom: freedoom2 map01"),
    "freedoom1": Scenario("freedoom1", "doom: freedoom1 e1m1", game="freedoom1.wad"),
    "freedoom2": Scenario("freedoom2", "doom: freedoom2 map01"),
    "health_gathering_supreme": Scenario(
        "health_gathering_supreme", "doom: gather health in the maze with an acid floor", _COLLECT
    ),
    "learning": Scenario("learning", "doom: shoot the monster at the far wall", _STRAFE),
    "multi": Scenario("multi", "doom: arena for many players, alone"),
    "multi_duel": Scenario("multi_duel", "doom: room for a duel, alone", _STRAFE, arguments=_DEATHMATCH),
    "my_way_home": Scenario("my_way_home", "doom: find the vest in the maze", _WALK),
    "oblige": Scenario("oblige", "doom: freedoom2 map01"),
    "predict_position": Scenario("predict_position", "doom: hit the walking monster with a rocket", _TURN),
    "rocket_basic": Scenario("rocket_basic", "doom: hit the monster at the far wall with a rocket", _STRAFE),
    "simpler_basic": Scenario("simpler_basic", "doom: shoot the monster in the plain room", _STRAFE),
}

FREEDOOM_MAPS = (
    *(f"freedoom1_e{episode}m{number}" for episode in range(1, 5) for number in range(1, 10)),
    *(f"freedoom2_map{number:02d}" for number in range(1, 33)),
)

_FREEDOOM = re.compile(r"(freedoom[12])_(\w+)")


def find_scenario(name: str) -> Scenario:
    """Returns the scenario of that name.

    Args:
        name: one of SCENARIOS or of FREEDOOM_MAPS: freedoom1_e1m1 to e4m9, freedoom2_map01 to map32.

    Raises:
        ValueError: there is none.
    """
    if name in SCENARIOS:
        return SCENARIOS[name]
    match = _FREEDOOM.fullmatch(name)
    if match is None or name not in FREEDOOM_MAPS:
        known = ", ".join(SCENARIOS)
        raise ValueError(f"scenario is {name!r}; use one of {known}, freedoom1_e1m1 or freedoom2_map01")
    config, level = match.groups()
    return Scenario(config, f"doom: {config} {level}", game=f"{config}.wad", level=level)
