"""The page itself: style and frame. Nothing in it is loaded from elsewhere."""

from html import escape

LIGHT = {
    "--paper": "#ffffff",
    "--ink": "#1f2933",
    "--soft": "#56616e",
    "--line": "#d5dae0",
    "--raised": "#f4f6f8",
    "--c0": "#1f5fbf",
    "--c1": "#b3541e",
    "--c2": "#1f7a4d",
    "--c3": "#8a3ea8",
}
DARK = {
    "--paper": "#14181d",
    "--ink": "#e6eaee",
    "--soft": "#a4afbb",
    "--line": "#39424d",
    "--raised": "#1d232a",
    "--c0": "#7aaaf0",
    "--c1": "#f0a06a",
    "--c2": "#6cc79a",
    "--c3": "#cf9be6",
}
STYLE = """
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; } h4 { font-size: .9rem; margin: 1rem 0 .25rem; }
p { margin: .25rem 0; max-width: 46rem; } .soft, .ci, .note, caption, figcaption { color: var(--soft); }
.scroll { overflow-x: auto; margin: .75rem 0; } .scroll:focus-visible { outline: 2px solid var(--c0); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
caption { text-align: left; font-size: .85rem; padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid var(--line); }
thead th { font-size: .85rem; font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; white-space: nowrap; }
.ci { display: block; font-size: .78rem; white-space: nowrap; }
figure { margin: 0; } .plots { display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; margin: 1rem 0; }
.plots > figure { flex: 1 1 20rem; min-width: 0; max-width: 34rem; } .plots svg { width: 100%; height: auto; }
figcaption { font-size: .85rem; margin-bottom: .5rem; } .legend { color: var(--ink); }
.key { white-space: nowrap; margin-right: .6rem; }
.key::before { content: ""; display: inline-block; width: .65em; height: .65em; border-radius: 50%;
  background: var(--c); margin-right: .3em; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.forest { display: grid; grid-template-columns: minmax(4rem, 9rem) 1fr; gap: .35rem .75rem; font-size: .85rem; }
.bar-label { align-self: center; } .bars { border-left: 1px solid var(--line); padding: .15rem 0; }
.bar { position: relative; height: .7rem; }
.bar i { position: absolute; top: .25rem; height: .2rem; background: var(--c); opacity: .55; border-radius: .1rem; }
.bar b { position: absolute; top: .07rem; width: .56rem; height: .56rem; margin-left: -.28rem; border-radius: 50%;
  background: var(--c); }
.ticks { position: relative; height: 1.2rem; color: var(--soft); font-size: .75rem; margin-right: 1rem; }
.bars { margin-right: 1rem; } .ticks span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.plots svg { max-width: 26rem; } .plots text { fill: var(--soft); font: 12px system-ui, sans-serif; }
.plots .grid { stroke: var(--line); } .plots .zero { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 4; }
.plots g line, .plots g polyline { stroke: var(--c); stroke-width: 2; fill: none; } .plots g circle { fill: var(--c); }
details { border-top: 1px solid var(--line); } summary { cursor: pointer; padding: .6rem 0; font-weight: 600; }
.card { display: flex; gap: 1rem; padding: .75rem; margin: .5rem 0; background: var(--raised); border-radius: 8px; }
.card figcaption { font-size: .75rem; line-height: 1.25; margin: .2rem 0 0; } .card p { margin: 0 0 .5rem; }
.asked { flex: 0 0 84px; } .asked figcaption { color: var(--ink); font-weight: 600; } .told { min-width: 0; }
.rows { display: flex; flex-wrap: wrap; gap: .5rem; } .rows figure { width: 68px; }
.card img, .gone { display: block; width: 64px; height: 64px; object-fit: contain; border-radius: 6px; }
.card img { background: #fff; }
.gone { background: none; border: 1px dashed var(--line); } .asked img, .asked .gone { width: 84px; height: 84px; }
.curves { overflow-x: auto; } .curves svg { max-width: none; }
@media (max-width: 40rem) { .card { flex-direction: column; gap: .5rem; }
  .forest { grid-template-columns: 5.5rem 1fr; } }
"""


def page(title: str, body: str) -> str:
    """A whole document."""
    light, dark = (" ".join(f"{name}: {value};" for name, value in colours.items()) for colours in (LIGHT, DARK))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>:root {{ color-scheme: light dark; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
