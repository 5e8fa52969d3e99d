"""Lays pictures out in a grid under their prompts: python contact_sheet.py OUT.webp COLUMNS PICTURE...

The prompt is read from the record that kinora writes into its pictures.
"""
import json
import sys
import textwrap

from PIL import Image, ImageDraw

out, columns, paths = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
side, caption = 200, 40
rows = -(-len(paths) // columns)
sheet = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + caption + 8) + 8), "white")
draw = ImageDraw.Draw(sheet)
for number, path in enumerate(paths):
    picture = Image.open(path)
    x, y = 8 + number % columns * (side + 8), 8 + number // columns * (side + caption + 8)
    sheet.paste(picture.convert("RGB").resize((side, side), Image.LANCZOS), (x, y))
    record = next(json.loads(v) for v in picture.info.values() if isinstance(v, str) and v.startswith("{"))
    draw.multiline_text((x, y + side + 3), "\n".join(textwrap.wrap(record["prompt"], 34)[:3]), fill="black", spacing=1)
sheet.save(out, quality=80)
