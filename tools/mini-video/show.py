"""Films side by side, moving, over their prompts: python show.py OUT.webp COLUMNS FOLDER...

Each folder holds a film's frames as kinora writes them (-o 'FOLDER/{index}.png'); the prompt is read from their record.
"""
import json
import pathlib
import sys
import textwrap

from PIL import Image, ImageDraw

out, columns, folders = sys.argv[1], int(sys.argv[2]), [pathlib.Path(f) for f in sys.argv[3:]]
side, caption, gap = 128, 44, 6
rows = -(-len(folders) // columns)
films = [[Image.open(path) for path in sorted(folder.glob("*.png"))] for folder in folders]
records = [json.loads(film[0].info["kinora"]) for film in films]
sheets = []
for i in range(len(films[0])):
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + caption + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (film, record) in enumerate(zip(films, records)):
        x, y = gap + number % columns * (side + gap), gap + number // columns * (side + caption + gap)
        sheet.paste(film[i].convert("RGB"), (x, y))
        draw.multiline_text((x, y + side + 2), "\n".join(textwrap.wrap(record["prompt"], 25)[:4]), fill="black", spacing=0, font_size=10)
    sheets.append(sheet)
times = [round(1000 / records[0]["fps"])] * (len(sheets) - 1) + [900]
sheets[0].save(out, save_all=True, append_images=sheets[1:], duration=times, loop=0, quality=70, method=4)
