"""Make the sample that `memory-builder demo` brings along: common things, each drawn by several artists.

    uv run python examples/icons/bundle_sample.py

Only sets under CC0-1.0, MIT or Apache-2.0 are taken, and no logos. The same seed gives the same bytes.
"""

import gzip
import io
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from command import run
from iconify import PACKAGE, VERSION, Icon, IconsError, IconSet, open_package, read_icons, read_sets
from prepare import write_tar

LICENCES = ("Apache-2.0", "CC0-1.0", "MIT")
LEFT_OUT = ("Logos", "Programming")  # categories of iconify that are mostly brands
SAMPLE = Path(__file__).resolve().parents[2] / "memory_builder" / "demo" / "sample"
LEAST_PAIRS, MOST_BYTES = 2000, 5_000_000  # of the sample; bytes of the gzipped tars together

# A thing a line holds may go by several names, joined by `|`: artists do not agree on one.
THINGS: dict[str, str] = {
    "animals": """
        dog|dog-face cat|cat-face horse|horse-face cow|cow-face pig|pig-face sheep|ewe goat rabbit|rabbit-face
        mouse-face|rat bear panda koala lion tiger|tiger-face elephant giraffe zebra hippopotamus camel kangaroo monkey
        gorilla wolf fox raccoon hedgehog squirrel|chipmunk deer|moose sloth otter beaver bat bird chicken|hen rooster
        duck swan owl eagle parrot penguin peacock flamingo turkey dove frog turtle snake lizard crocodile t-rex dragon
        whale dolphin shark fish tropical-fish octopus squid crab lobster shrimp snail butterfly bee|honeybee
        beetle|lady-beetle ant spider spider-web scorpion mosquito worm unicorn paw|paw-prints bone feather
    """,
    "plants": """
        tree|deciduous-tree pine-tree|evergreen-tree palm-tree cactus flower|blossom rose tulip sunflower cherry-blossom
        hibiscus mushroom leaf|fallen-leaf maple-leaf four-leaf-clover|clover seedling|sprout potted-plant bouquet acorn
        wheat|sheaf-of-rice
    """,
    "food": """
        apple|red-apple pear orange|tangerine lemon banana watermelon grapes strawberry cherry|cherries peach mango
        pineapple coconut kiwi-fruit avocado tomato eggplant potato carrot corn|ear-of-corn hot-pepper|pepper cucumber
        broccoli garlic onion bread croissant pretzel pancakes waffle cheese|cheese-wedge egg bacon hamburger|burger
        french-fries pizza hot-dog sandwich taco burrito sushi dumpling noodles|steaming-bowl spaghetti curry-rice
        popcorn salt ice-cream|icecream doughnut|donut cookie cake|birthday-cake cupcake pie chocolate-bar candy
        lollipop honey-pot|honey milk|glass-of-milk coffee|hot-beverage tea|teapot bubble-tea beer|beer-mug
        wine|wine-glass cocktail|cocktail-glass champagne|bottle-with-popping-cork spoon fork-and-knife|cutlery
        knife|kitchen-knife chopsticks bowl
    """,
    "vehicles": """
        car|automobile taxi bus truck|delivery-truck ambulance fire-engine|fire-truck police-car racing-car tractor
        pickup-truck van|minibus motorcycle scooter|motor-scooter|kick-scooter bicycle|bike train|locomotive tram
        metro|subway monorail trolleybus airplane|plane helicopter rocket ufo|flying-saucer parachute sailboat|sail-boat
        ship|cruise-ship ferry speedboat canoe|kayak anchor wheel fuel-pump|gas-pump traffic-light|vertical-traffic
        hot-air-balloon cable-car|aerial-tramway satellite
    """,
    "places": """
        house|home hospital school bank hotel church mosque synagogue castle factory|industry stadium lighthouse
        tent|camping bridge fountain windmill ferris-wheel roller-coaster mountain volcano island|desert-island beach
        desert city|cityscape office-building|building statue-of-liberty tower|tokyo-tower warehouse
        museum|classical-building
    """,
    "weather": """
        sun|sunny moon|crescent-moon full-moon star shooting-star comet cloud rain|cloud-with-rain snow|cloud-with-snow
        snowflake snowman lightning|high-voltage thunderstorm|cloud-with-lightning-and-rain
        partly-cloudy-day|sun-behind-cloud rainbow tornado fog|foggy wind|wind-face umbrella thermometer sunrise sunset
        hurricane|cyclone fire|flame droplet|drop|water-drop wave|water-wave earth|globe milky-way|galaxy
        saturn|ringed-planet|planet
    """,
    "tools": """
        hammer wrench screwdriver saw|carpentry-saw axe|hatchet pickaxe|pick shovel ladder toolbox drill
        nut-and-bolt|nut gear|cog chain|chains|link magnet scissors paintbrush|brush paint-roller bucket broom
        plunger|toilet-plunger sponge soap lock|locked unlock|unlocked key|old-key flashlight|torch candle
        lightbulb|light-bulb battery plug|electric-plug compass ruler|straight-ruler paperclip pushpin|pin pencil pen
        crayon eraser fire-extinguisher microscope telescope test-tube petri-dish dna stethoscope syringe pill
        bandage|adhesive-bandage x-ray scales|balance-scale abacus
    """,
    "home": """
        bed couch|sofa|couch-and-lamp chair door window mirror lamp bathtub shower toilet refrigerator|fridge
        washing-machine microwave oven clock|mantelpiece-clock alarm-clock watch hourglass stopwatch telephone|phone
        mobile-phone|smartphone laptop desktop-computer|desktop keyboard printer camera video-camera|movie-camera
        television|tv radio headphone|headphones microphone loudspeaker|speaker megaphone floppy-disk
        game-controller|video-game|gamepad joystick robot book|open-book books newspaper envelope|mail package|box
        gift|wrapped-gift calendar shopping-cart basket wallet coin money-bag credit-card receipt ticket
        trash|wastebasket trophy medal|sports-medal|military-medal crown gem|gem-stone|diamond ring balloon teddy-bear
        puzzle-piece|puzzle kite yarn sewing-needle|needle baby-bottle|bottle map|world-map flag|triangular-flag shield
        bomb crystal-ball magic-wand treasure-chest
    """,
    "clothes": """
        t-shirt|tshirt dress jeans|pants shorts socks coat|jacket scarf gloves hat|top-hat cap|billed-cap
        running-shoe|shoe high-heeled-shoe|high-heels boot|womans-boot glasses sunglasses necktie|tie handbag backpack
        briefcase luggage|suitcase lipstick bikini
    """,
    "sport and music": """
        soccer-ball|football|soccer basketball american-football baseball tennis volleyball rugby-football
        golf|flag-in-hole bowling ping-pong|table-tennis badminton ice-hockey|hockey boxing-glove skateboard skis|skiing
        ice-skate surfing|person-surfing swimming|person-swimming dumbbell|weight bow-and-arrow fishing-pole|fishing
        chess-pawn dice|game-die guitar violin piano|musical-keyboard trumpet saxophone drum accordion
        musical-note|music
    """,
    "people": """
        baby boy girl man woman family eye ear nose mouth tooth tongue brain lungs hand thumbs-up thumbs-down handshake
        clapping-hands footprints|footprint skull ghost alien clown-face santa-claus princess ninja astronaut detective
        cook|chef farmer firefighter police-officer teacher|woman-teacher heart|red-heart broken-heart|heart-broken
        grinning-face|smile crying-face|loudly-crying-face angry-face|angry sleeping-face winking-face|wink
        thinking-face sunglasses-face|smiling-face-with-sunglasses running|person-running walking|person-walking
    """,
}
STYLE_WORDS = """
    outline outlined filled fill solid line linear bold broken duotone twotone light thin regular rounded sharp round
    color alt 12 15 16 20 24 28 32 48
"""
STYLES = frozenset(STYLE_WORDS.split())  # what a name may end in without naming another thing


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """Write the sample's tars and its LICENSES.md."""

    out: Path = SAMPLE
    """Folder of the sample; its tars are replaced."""
    size: int = 64
    """Width and height of the pictures, in pixels."""
    seed: int = 0
    """Seed of the colours, of the artists chosen and of the order."""
    per_thing: int = 5
    """Pictures of one thing, each from another set."""
    shards: int = 5
    """Tars to deal the pairs out to."""
    source: Path | None = None
    """The package's tgz or its unpacked folder; npm fetches it otherwise."""
    cache: Path = Path(tempfile.gettempdir()) / "icons"
    """Folder the package is unpacked into."""


def thing_of(name: str) -> str:
    """Return an icon's name without its style: `cat-face-24-filled` -> `cat-face`."""
    words = name.split("-")
    while len(words) > 1 and words[-1] in STYLES:
        words.pop()
    return "-".join(words)


def candidates(icons: Mapping[str, Mapping[str, Icon]]) -> dict[str, dict[str, Icon]]:
    """Return, by thing and by set, the icon whose name says the least beside the thing."""
    found: dict[str, dict[str, Icon]] = {}
    for prefix, by_name in icons.items():
        for name in sorted(by_name, key=lambda name: (len(name), name)):
            found.setdefault(thing_of(name), {}).setdefault(prefix, by_name[name])
    return found


def choose(names: str, found: Mapping[str, Mapping[str, Icon]], per_thing: int, seed: int) -> list[Icon]:
    """Return a thing's pictures, each from another set: just over half with their own colours."""
    by_set: dict[str, Icon] = {}
    for name in reversed(names.split("|")):  # the first name wins where a set has several
        by_set |= found.get(name, {})
    drawn = random.Random(f"{seed}/{names}").sample(sorted(by_set), len(by_set))
    colour = [by_set[prefix] for prefix in drawn if not by_set[prefix].mono]
    mono = [by_set[prefix] for prefix in drawn if by_set[prefix].mono]
    enough = max((per_thing + 1) // 2, per_thing - len(mono))
    return [*colour[:enough], *mono][:per_thing]


def licences_page(pairs: Counter[str], sets: Mapping[str, IconSet]) -> str:
    """Return LICENSES.md: whose pictures the sample holds, and under what licence."""
    rows = [
        f"| {sets[p].name} (`{p}`) | {n} | {_link(sets[p].author, sets[p].author_url)} "
        f"| {_link(sets[p].licence_spdx, sets[p].licence_url)} |"
        for p, n in sorted(pairs.items())
    ]
    return "\n".join(
        [
            "# Licences of the sample",
            "",
            f"{pairs.total()} pictures rendered from {len(pairs)} icon sets of the npm package `{PACKAGE}@{VERSION}`, "
            "each under the licence of its set. The copyright of a set is its author's; the last column links to the "
            "author's own notice where iconify gives one. The texts lie beside this: [Apache-2.0](Apache-2.0.txt), "
            "[CC0-1.0](CC0-1.0.txt), [MIT](MIT.txt). The pictures were rasterised, and icons without colours of their "
            "own were given two; nothing else was changed.",
            "",
            "| Set | Pictures | Author | Licence |",
            "|---|---:|---|---|",
            *rows,
            "",
        ]
    )


def _link(text: str, url: str | None) -> str:
    return f"[{text}]({url})" if url else text


def write_sample(icons: Sequence[Icon], sets: Mapping[str, IconSet], config: Bundle) -> tuple[Counter[str], int]:
    """Write the tars; return the pairs of each set and the bytes of all tars."""
    config.out.mkdir(parents=True, exist_ok=True)
    for stale in config.out.glob("*.tar.gz"):
        stale.unlink()
    pairs: Counter[str] = Counter()
    total = 0
    for ordinal in range(config.shards):
        tar = io.BytesIO()
        written, failures = write_tar(
            tar, icons[ordinal :: config.shards], sets=sets, size=config.size, seed=config.seed
        )
        if failures:
            raise IconsError(f"{len(failures)} icons failed, first {failures[0]}: take that thing out of THINGS")
        pairs += written
        # No name and no time in the header: gzip would write both otherwise.
        packed = gzip.compress(tar.getvalue(), compresslevel=9, mtime=0)
        (config.out / f"{ordinal:05d}.tar.gz").write_bytes(packed)
        total += len(packed)
    return pairs, total


def bundle(config: Bundle) -> str:
    """Do the whole of it and return the summary line."""
    package = open_package(config.source, config.cache)
    every = read_sets(package)
    sets = {p: s for p, s in every.items() if s.licence_spdx in LICENCES and s.category not in LEFT_OUT}
    found = candidates({prefix: read_icons(package, prefix) for prefix in sets})
    things = " ".join(THINGS.values()).split()
    chosen = {thing: choose(thing, found, config.per_thing, config.seed) for thing in things}
    for thing, pictures in chosen.items():
        if len(pictures) < config.per_thing:
            print(f"{thing}: only {len(pictures)} pictures", file=sys.stderr)
    icons = list({(i.set, i.name): i for pictures in chosen.values() for i in pictures}.values())
    random.Random(config.seed).shuffle(icons)  # so that every tar holds some of everything
    pairs, total = write_sample(icons, sets, config)
    (config.out / "LICENSES.md").write_text(licences_page(pairs, sets), encoding="utf-8")
    if pairs.total() < LEAST_PAIRS or total > MOST_BYTES:
        raise IconsError(
            f"{pairs.total()} pairs in {total} bytes: change --per-thing for {LEAST_PAIRS} in {MOST_BYTES}"
        )
    return f"{pairs.total()} pairs of {len(things)} things from {len(pairs)} sets, {total / 1e6:.2f} MB in {config.out}"


if __name__ == "__main__":
    sys.exit(run(bundle, Bundle, __doc__))
