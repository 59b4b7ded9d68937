"""What the generated web shop sells: its categories with their attributes and options, and its brands."""

from dataclasses import dataclass

BRANDS = ("norvik", "altora", "mirel", "tundrix", "quillon", "bexley", "sorano", "veldt")
COLORS = ("black", "white", "blue", "red")
SIZES = ("small", "medium", "large", "xlarge")
PACKS = ("single", "double", "family", "bulk")
FINISHES = ("matte", "glossy", "brushed", "antique")


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of product: its word, its path in the shop, the attributes and options that its products choose from."""

    name: str
    path: tuple[str, ...]
    attributes: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]


def _category(name: str, department: str, attributes: str, *options: tuple[str, tuple[str, ...]]) -> Category:
    return Category(name, (department, name), tuple(attributes.split()), options)


# Attribute words are shared between categories, so that a search by attribute alone drowns in other goods; no
# attribute is part of another word, because the reward looks for attributes inside the product's text.
CATEGORIES = (
    _category(
        "jacket",
        "clothing",
        "waterproof lightweight hooded quilted windproof padded fleece slim",
        ("size", SIZES),
        ("color", COLORS),
    ),
    _category(
        "coffee",
        "grocery",
        "organic decaf roasted mild fairtrade ground instant arabica",
        ("flavor", ("vanilla", "hazelnut", "caramel", "mocha")),
        ("pack", PACKS),
    ),
    _category(
        "lamp",
        "home",
        "dimmable wireless wooden rechargeable adjustable ceramic modern vintage",
        ("color", COLORS),
        ("finish", FINISHES),
    ),
    _category(
        "backpack",
        "luggage",
        "waterproof vegan foldable lightweight padded hiking leather wheeled",
        ("size", SIZES),
        ("color", COLORS),
    ),
    _category(
        "shampoo",
        "beauty",
        "organic vegan moisturizing clarifying volumizing gentle soapless fairtrade",
        ("scent", ("lavender", "coconut", "citrus", "rose")),
        ("pack", PACKS),
    ),
    _category(
        "blanket",
        "home",
        "washable fleece quilted woven weighted heated lightweight cooling",
        ("size", ("twin", "full", "queen", "king")),
        ("color", COLORS),
    ),
    _category(
        "cookies",
        "grocery",
        "organic vegan crunchy chewy sugarfree handmade glutenfree fairtrade",
        ("flavor", ("chocolate", "oatmeal", "almond", "raisin")),
        ("pack", PACKS),
    ),
    _category(
        "sneakers",
        "clothing",
        "breathable waterproof cushioned leather vegan lightweight wide grippy",
        ("size", ("7", "8", "9", "10")),
        ("color", COLORS),
    ),
    _category(
        "headphones",
        "electronics",
        "wireless foldable rechargeable adjustable lightweight cushioned waterproof studio",
        ("color", COLORS),
        ("finish", FINISHES),
    ),
    _category(
        "rug",
        "home",
        "washable woven handmade shaggy braided modern vintage nonslip",
        ("size", SIZES),
        ("color", COLORS),
    ),
    _category(
        "bottle",
        "sports",
        "insulated leakproof foldable steel glass lightweight washable hiking",
        ("color", COLORS),
        ("lid", ("straw", "flip", "screw", "spout")),
    ),
    _category(
        "tea",
        "grocery",
        "organic decaf herbal loose fairtrade smoky floral instant",
        ("flavor", ("ginger", "lemon", "mint", "peach")),
        ("pack", PACKS),
    ),
)
