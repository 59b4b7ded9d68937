"""Writes documents, texts and queries for MakeGolden.java into a folder: `python make_lucene_input.py work`."""

import json
import random
import sys
from pathlib import Path

from trl_mise.envs.webshop_catalogue import CatalogueSpec, build_catalogue

AWKWARD = [
    "",
    "the and of to",
    "The Women's T-shirt, women’s tee and kids＇ pyjamas'",
    "3.5mm jack, 1,000 pcs, 5'6\" tall, 4K/8K @ 60Hz; v2.0.1 (12-pack) 50% off",
    "usb_c cable_ _x_ __ a__b mid·dot it:is a.b.c. www.shop.example.com me@mail.example",
    "café crème brûlée naïve ÆRO Straße İstanbul ǅ",
    "日本語の緑茶 カタカナ ﾊﾝｶｸ 한국어 라면 ภาษาไทย ພາສາລາວ",
    "שלום צה\"ל ז'בוטינסקי العربية كتاب हिन्दी किताब",
    "nice \U0001f600 \U0001f468‍\U0001f469‍\U0001f467 \U0001f1e9\U0001f1ea ❤️ ☺ ™ © ® 1️⃣ #️⃣ \U0001f44d\U0001f3fd ⭐",
    "zero​width soft­hyphen no break tab\tnew\nline",
    "technology assembly biology possibly generalizations relational conditional hopping hoped agreed flies dies sky",
    "is it by as be do go at us its ours this'll don't won't o'neill rock'n'roll 'quoted' \"double\"",
    "x" * 254 + " " + "y" * 255 + " " + "z" * 300,
    "١٢٣ ４５６ ⅷ ² ½ Ⅳ 10µm 5Ω ℃ ｆｕｌｌｗｉｄｔｈ",
    "e\u0301clair co\u0308operate \U00020000\U00020001 \U0001d400bc ㍿ ㊙ 〆 々 ー",
]
QUERIES = [
    "waterproof jacket",
    "find me waterproof slim jacket with size: large, and price lower than 40.00 dollars",
    "jacket jacket jacket red",
    "coffee",
    "free returns",
    "organic vegan",
    "zzz unknown",
    "the and of",
    "technology",
    "technologies of assembly",
    "women's t-shirt",
    "3.5mm",
    "café",
    "緑茶",
    "usb_c",
    "\U0001f600",
    "word",
    "words wordy common",
    "lights lighting lighted",
    "norvik altora mirel tundrix quillon bexley sorano veldt",
    "size: small, color: red, flavor: mint",
]


def shop_document(product) -> str:
    """As the official shop writes it: title, description, first bullet, options."""
    options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in product.options)
    return " ".join((product.title, product.description, product.bullets[0], options)).lower()


def main(folder: Path) -> None:
    catalogue = build_catalogue(CatalogueSpec(num_products=240))
    rng = random.Random(0)
    documents = [(product.asin.upper(), shop_document(product)) for product in catalogue.products]
    documents += [(f"C{number:03d}", text.lower()) for number, text in enumerate(AWKWARD)]
    # Lengths beyond the exact ones, so that neighbours fall into one bucket; equal ones tie.
    pool = ["word", "wordy", "common", "light", "lights", "lighting", "lighted", "jacket", "red", "tea", "of", "the"]
    for number, length in enumerate((39, 40, 41, 42, 43, 44, 47, 48, 60, 61, 100, 101, 150, 400, 900)):
        documents.append((f"L{number:03d}", " ".join(rng.choice(pool) for _ in range(length))))
    rng.shuffle(documents)  # ties must not follow the order of the index
    goals = [goal.instruction for goal in catalogue.goals["test"][:40]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "documents").mkdir(exist_ok=True)
    lines = [json.dumps({"id": name, "contents": text}) for name, text in documents]
    (folder / "documents" / "documents.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "texts.json").write_text(json.dumps(AWKWARD + [text.lower() for text in AWKWARD]))
    (folder / "queries.json").write_text(json.dumps(QUERIES + goals + AWKWARD))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
