// Words of our own for keys and word lists.
#include "ruler.h"

namespace tactic::eval {
namespace {

constexpr const char* kAdjectives[] = {
    "able",   "amber",  "ample",   "ancient", "angry",   "arid",    "bitter",  "bland",   "blind",  "blunt",  "bold",
    "brave",  "brief",  "bright",  "brisk",   "broad",   "bumpy",   "calm",    "cheap",   "chilly", "civil",  "clean",
    "clever", "cloudy", "coarse",  "cold",    "common",  "cosy",    "crisp",   "crooked", "cruel",  "curly",  "damp",
    "daring", "dark",   "decent",  "deep",    "dense",   "dim",     "direct",  "dizzy",   "dry",    "dull",   "dusty",
    "eager",  "early",  "earnest", "easy",    "elder",   "empty",   "equal",   "exact",   "faint",  "fair",   "faithful",
    "famous", "fancy",  "fast",    "fierce",  "fine",    "firm",    "flat",    "fleet",   "fluffy", "fond",   "formal",
    "frail",  "free",   "fresh",   "frosty",  "frugal",  "gentle",  "giant",   "glad",    "golden", "good",   "grand",
    "grave",  "great",  "greedy",  "grim",    "happy",   "hard",    "harsh",   "hasty",   "hazy",   "heavy",  "hidden",
    "hollow", "honest", "humble",  "hungry",  "icy",     "idle",    "ideal",   "jolly",   "keen",   "kind",   "large",
    "late",   "lazy",   "lean",    "light",   "lively",  "lofty",   "lonely",  "loose",   "loud",   "lucky",  "mellow",
    "mild",   "misty",  "modest",  "moist",   "muddy",   "narrow",  "neat",    "nimble",  "noble",  "noisy",  "novel",
    "odd",    "old",    "open",    "orderly", "pale",    "patient", "plain",   "polite",  "proud",  "pure",   "quick",
    "quiet",  "rapid",  "rare",    "raw",     "ready",   "rigid",   "ripe",    "rough",   "round",  "royal",  "rusty",
    "sacred", "safe",   "salty",   "scarce",  "secret",  "serene",  "shallow", "sharp",   "shiny",  "short",  "shy",
    "silent", "simple", "sincere", "sleek",   "slender", "slow",    "smooth",  "sober",   "soft",   "solid",  "sour",
    "spare",  "steady", "steep",   "stern",   "sticky",  "stout",   "strange", "strict",  "strong", "sturdy", "subtle",
    "sudden", "sunny",  "sweet",   "swift",   "tall",    "tame",    "tender",  "thick",   "thin",   "tidy",   "tiny",
    "tired",  "tough",  "true",    "uneven",  "unique",  "upper",   "urban",   "useful",  "vague",  "vast",   "vivid",
    "warm",   "weary",  "wide",    "wild",    "wise",    "young",
};
constexpr const char* kNouns[] = {
    "acorn",   "actor",   "alley",    "anchor",   "ankle",    "apple",   "apron",    "arch",    "arrow",    "attic",   "autumn",
    "avenue",  "badge",   "bakery",   "balcony",  "bamboo",   "banner",  "barge",    "barrel",  "basin",    "basket",  "beach",
    "beacon",  "beam",    "beetle",   "bell",     "bench",    "berry",   "bicycle",  "birch",   "blanket",  "blossom", "board",
    "bonnet",  "border",  "bottle",   "boulder",  "branch",   "bread",   "breeze",   "brick",   "bridge",   "brook",   "broom",
    "bucket",  "buckle",  "butter",   "button",   "cabin",    "cable",   "cactus",   "camel",   "candle",   "canoe",   "canvas",
    "canyon",  "captain", "carpet",   "castle",   "cattle",   "cavern",  "cedar",    "cellar",  "chain",    "chair",   "chalk",
    "cherry",  "chest",   "chimney",  "cider",    "circle",   "cliff",   "clock",    "closet",  "cloud",    "clover",  "coast",
    "cobbler", "coin",    "collar",   "column",   "comet",    "compass", "copper",   "corner",  "cottage",  "cotton",  "cradle",
    "crane",   "crater",  "creek",    "cricket",  "crown",    "crystal", "cupboard", "curtain", "cushion",  "daisy",   "dawn",
    "desert",  "desk",    "diamond",  "ditch",    "dolphin",  "donkey",  "door",     "dragon",  "drawer",   "drum",    "eagle",
    "earth",   "easel",   "echo",     "elbow",    "ember",    "engine",  "estate",   "fabric",  "falcon",   "farm",    "feather",
    "fence",   "ferry",   "fiddle",   "field",    "finger",   "flame",   "flask",    "fleece",  "flint",    "flower",  "flute",
    "forest",  "fork",    "fossil",   "fountain", "fox",      "frame",   "furnace",  "garden",  "garlic",   "gate",    "gazelle",
    "geyser",  "ginger",  "glacier",  "glass",    "glove",    "goblet",  "grain",    "granite", "grape",    "grass",   "gravel",
    "grove",   "guitar",  "gull",     "hammer",   "harbor",   "harp",    "harvest",  "hat",     "hazel",    "hedge",   "helmet",
    "heron",   "hill",    "hinge",    "honey",    "hook",     "horizon", "horn",     "horse",   "hotel",    "insect",  "island",
    "ivory",   "ivy",     "jacket",   "jar",      "jewel",    "journal", "jungle",   "kettle",  "keyhole",  "kitchen", "kite",
    "knight",  "knot",    "ladder",   "lagoon",   "lake",     "lamp",    "lantern",  "lattice", "laurel",   "leaf",    "ledge",
    "lemon",   "letter",  "library",  "lily",     "lizard",   "lobster", "locket",   "loom",    "magnet",   "mantle",  "maple",
    "marble",  "market",  "marsh",    "mask",     "meadow",   "medal",   "melon",    "mill",    "mirror",   "mitten",  "moon",
    "morning", "mortar",  "moss",     "moth",     "mountain", "mug",     "museum",   "nail",    "napkin",   "needle",  "nest",
    "nettle",  "night",   "notebook", "oak",      "oasis",    "ocean",   "olive",    "onion",   "orchard",  "orchid",  "otter",
    "oven",    "owl",     "oyster",   "paddle",   "palace",   "paper",   "parcel",   "parrot",  "pasture",  "path",    "pearl",
    "pebble",  "pencil",  "pepper",   "piano",    "picnic",   "pigeon",  "pillow",   "pine",    "planet",   "plank",   "plaza",
    "plum",    "pocket",  "pond",     "poppy",    "porch",    "potter",  "prairie",  "puddle",  "pumpkin",  "quarry",  "quill",
    "quilt",   "rabbit",  "raft",     "rain",     "ranch",    "raven",   "reef",     "ribbon",  "ridge",    "river",   "road",
    "robin",   "rocket",  "roof",     "rope",     "rose",     "rudder",  "saddle",   "sail",    "salmon",   "sand",    "satchel",
    "school",  "seed",    "shadow",   "shell",    "shelf",    "shore",   "shovel",   "silver",  "sleeve",   "smoke",   "snow",
    "sparrow", "spear",   "spoon",    "spring",   "stable",   "stairs",  "star",     "station", "stone",    "storm",   "stove",
    "stream",  "string",  "summit",   "sunset",   "swan",     "table",   "tailor",   "teapot",  "temple",   "thimble", "thistle",
    "thread",  "throne",  "ticket",   "tiger",    "timber",   "tower",   "trail",    "train",   "treasure", "trumpet", "tulip",
    "tunnel",  "turtle",  "valley",   "vase",     "velvet",   "village", "vine",     "violin",  "wagon",    "walnut",  "water",
    "wheat",   "wheel",   "whistle",  "willow",   "window",   "winter",  "wolf",     "wool",
};

}  // namespace

std::span<const char* const> ruler_adjectives() { return kAdjectives; }
std::span<const char* const> ruler_nouns() { return kNouns; }

}  // namespace tactic::eval
