"""The look of a report page: the colours of both themes and the style sheet that is written from them."""

from __future__ import annotations

# Text on ``bg`` and ``surface`` has a contrast of at least 4.5:1, marks of at least 3:1; a test computes it.
# The three series are told apart by lightness and hue in every common colour blindness, and by shape.
LIGHT = {
    "bg": "#f7f7f4",
    "surface": "#ffffff",
    "text": "#1d2125",
    "muted": "#595f68",
    "line": "#dddcd5",
    "good": "#17683a",
    "fair": "#805000",
    "bad": "#b3261e",
    "good-soft": "#e6f2ea",
    "fair-soft": "#faf0dc",
    "bad-soft": "#fbe9e7",
    "none-soft": "#ecebe6",
    "propagated": "#0b62a8",
    "isolated": "#c24d00",
    "noise": "#5f6672",
    "zero": "#ffffff",
    "infinite": "#d4145a",
    "shade": "#c9c8c0",
}
DARK = {
    "bg": "#131517",
    "surface": "#1b1e21",
    "text": "#e9e7e2",
    "muted": "#a5abb3",
    "line": "#34393e",
    "good": "#74cf97",
    "fair": "#ebb85c",
    "bad": "#ff8f85",
    "good-soft": "#173022",
    "fair-soft": "#352a14",
    "bad-soft": "#3c1f1d",
    "none-soft": "#2a2e32",
    "propagated": "#62b1f5",
    "isolated": "#f59a3c",
    "noise": "#9aa1ab",
    "zero": "#1b1e21",
    "infinite": "#ff5c9a",
    "shade": "#4a5056",
}
# From little to much: away from the page's background in both themes.
LIGHT_RAMP = ("#e9f4c4", "#c1e4b5", "#84cdb9", "#48b2c2", "#2290bd", "#2267a9", "#253f94", "#101f5c")
DARK_RAMP = tuple(reversed(("#f3f9c8", "#cdebac", "#8fd3ae", "#56b8bd", "#3597b8", "#3273a8", "#334f8d", "#2b3567")))
STEPS = len(LIGHT_RAMP)

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--text);line-height:1.55;overflow-wrap:anywhere;
 font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:70rem;margin:0 auto;padding:clamp(1.5rem,4vw,3.5rem) clamp(1rem,4vw,3rem) 4rem}
h1,h2,h3,p,ul,ol,dl,dd,pre,figure{margin:0;padding:0}
h1{font-size:clamp(1.5rem,1.1rem + 1.6vw,2.1rem);line-height:1.2;font-weight:650;letter-spacing:-.015em}
h2{font-size:1.2rem;line-height:1.3;font-weight:650;letter-spacing:-.005em}
h3{font-size:1rem;font-weight:650}
code,pre,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:.88em}
.kicker{color:var(--muted);font-size:.8rem;letter-spacing:.06em;text-transform:uppercase;font-weight:600}
.muted,figcaption{color:var(--muted)}
.small,figcaption{font-size:.875rem}
header{display:grid;gap:.5rem;margin-bottom:2rem}
section{margin-top:2.75rem;padding-top:1.5rem;border-top:1px solid var(--line)}
section>*+*{margin-top:1rem}
section>h2+p{margin-top:.4rem}
p,li,dd{max-width:46rem;text-wrap:pretty}
.cards{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr))}
.card{background:var(--surface);border:1px solid var(--line);border-top:4px solid var(--tone);border-radius:.6rem;
 padding:1.25rem 1.35rem 1.35rem}
.card>*+*{margin-top:.5rem}
.verdict{font-size:1.6rem;line-height:1.2;font-weight:650;letter-spacing:-.01em;color:var(--tone);display:flex;
 gap:.65rem;align-items:center}
.verdict .icon{flex:none;display:grid;place-items:center;width:2rem;height:2rem;border-radius:50%;
 background:var(--soft);font-size:1.05rem;line-height:1;letter-spacing:0}
.good{--tone:var(--good);--soft:var(--good-soft)}
.fair{--tone:var(--fair);--soft:var(--fair-soft)}
.bad{--tone:var(--bad);--soft:var(--bad-soft)}
.none{--tone:var(--muted);--soft:var(--none-soft)}
.badge{display:inline-block;white-space:nowrap;background:var(--soft);color:var(--tone);border-radius:1rem;
 padding:.1rem .7rem;font-size:.875rem;font-weight:600}
.callout{background:var(--soft);border-left:4px solid var(--tone);border-radius:.25rem .6rem .6rem .25rem;
 padding:1rem 1.25rem;margin-top:1rem}
.callout>*+*{margin-top:.35rem}
.callout strong{color:var(--tone)}
.facts{display:grid;grid-template-columns:minmax(7rem,max-content) minmax(0,1fr);gap:.35rem 1.5rem;font-size:.94rem}
.facts dt{color:var(--muted)}
ul,ol{list-style-position:outside;padding-left:1.2rem}
ul.plain,ol.plain{list-style:none;padding:0}
li+li{margin-top:.35rem}
.scroll{overflow-x:auto;position:relative;background:
 linear-gradient(to right,var(--bg) 40%,transparent) 0 0/2.5rem 100%,
 linear-gradient(to left,var(--bg) 40%,transparent) 100% 0/2.5rem 100%,
 linear-gradient(to right,var(--shade),transparent) 0 0/.7rem 100%,
 linear-gradient(to left,var(--shade),transparent) 100% 0/.7rem 100%;
 background-repeat:no-repeat;background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;font-size:.875rem;line-height:1.4;font-variant-numeric:tabular-nums;min-width:min(100%,34rem)}
.sheet>*+*{margin-top:.5rem}
th,td{text-align:left;vertical-align:top;padding:.42rem 1.4rem .42rem 0;border-bottom:1px solid var(--line)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:600;vertical-align:bottom;white-space:nowrap}
tbody th,tfoot th{font-weight:500;min-width:9.5rem}
table.names tbody th,table.names tfoot th{min-width:5rem;overflow-wrap:break-word}
tfoot th,tfoot td{font-weight:650;border-bottom:0}
.n{text-align:right;white-space:nowrap}
tr.bad th,tr.bad td.status{color:var(--bad);font-weight:650}
tr.fair td.status{color:var(--fair)}
.wide th,.wide td{white-space:nowrap}
details>summary{cursor:pointer;color:var(--text);font-weight:600;font-size:.94rem;padding:.4rem 0;width:fit-content}
details>summary:hover{text-decoration:underline}
details>summary::marker{color:var(--muted)}
details[open]>summary{margin-bottom:.6rem}
:focus-visible{outline:2px solid var(--propagated);outline-offset:2px;border-radius:.2rem}
pre{background:var(--surface);border:1px solid var(--line);border-radius:.5rem;padding:.9rem 1rem;font-size:.82rem;
 line-height:1.5;white-space:pre-wrap;tab-size:4}
pre.code{white-space:pre;overflow-wrap:normal;overflow-x:auto}
svg{display:block;overflow:visible}
svg text{fill:var(--text);font-size:12px;font-family:inherit}
svg .quiet{fill:var(--muted);font-size:11px}
svg .alarm{fill:var(--bad);font-size:11px;font-weight:650}
svg .carried{fill:var(--fair);font-size:11px}
.chart{width:100%}
.layers{padding:0 18px 0 122px}
.heat{padding:0 2px 0 34px}
.grid{stroke:var(--line);stroke-width:1}
.edge{stroke:var(--muted);stroke-width:1}
.band{fill:var(--none-soft);opacity:.6}
.hit{fill:var(--bad-soft)}
.m-propagated{fill:var(--propagated)}
.m-isolated{fill:var(--surface);stroke:var(--isolated);stroke-width:2.2}
.m-noise{stroke:var(--noise);stroke-width:3}
.l-propagated{stroke:var(--propagated);stroke-width:1.4;opacity:.55}
.l-noise{stroke:var(--noise);stroke-width:1.2;stroke-dasharray:2 3;opacity:.8}
.track{fill:var(--none-soft)}
.fill{fill:var(--propagated)}
.fill.sum{fill:var(--text)}
.panel{background:var(--surface);border:1px solid var(--line);border-radius:.6rem;padding:1rem}
.panel>*+*{margin-top:.75rem}
.legend{display:flex;flex-wrap:wrap;gap:.35rem 1.6rem;font-size:.875rem;list-style:none;padding:0}
.legend li{display:flex;gap:.5rem;align-items:baseline;margin:0}
.legend svg{flex:none;width:16px;height:12px;position:relative;top:1px}
.swatch{flex:none;width:1rem;height:.8rem;border:1px solid var(--muted);position:relative;top:1px}
.fault{color:var(--bad);font-weight:600}
.causes{list-style:none;padding:0}
.causes li{max-width:none;display:grid;gap:.25rem 2rem;padding:.8rem 0;border-bottom:1px solid var(--line);margin:0}
.causes li:last-child{border-bottom:0;padding-bottom:0}
.causes li>div>*+*{margin-top:.25rem}
.causes p{max-width:none}
.ids{display:grid;gap:.2rem 1rem;grid-template-columns:4.5rem minmax(0,1fr);margin-top:.35rem;font-size:.875rem}
.ids dt{color:var(--muted)}
.prompt{font-weight:600}
.prompts>li{max-width:none;padding:.9rem 0;border-bottom:1px solid var(--line);margin:0}
.rep{background:var(--none-soft);border-radius:.25rem;padding:.05em .4em;white-space:nowrap}
.v{white-space:nowrap;font-variant-numeric:tabular-nums}
mark{background:none;color:inherit;font-weight:650;text-decoration:underline 2px;text-underline-offset:.22em;
 text-decoration-color:var(--isolated)}
.faults>li{max-width:none;padding:.6rem 0;border-bottom:1px solid var(--line);margin:0}
footer{margin-top:3rem;color:var(--muted);font-size:.875rem}
@media (min-width:48rem){
 .layers{padding-left:150px}
 .panel{padding:1.4rem 1.5rem}
 .causes li{grid-template-columns:minmax(0,5fr) minmax(0,6fr)}
}
@media (max-width:30rem){
 .facts{grid-template-columns:minmax(0,1fr);gap:.1rem}
 .facts dd+dt{margin-top:.5rem}
 .panel{padding:.9rem .75rem}
 table{font-size:.8rem}
 th,td{padding-right:.5rem}
}
@media print{
 body{background:none;font-size:10.5pt}
 main{max-width:none;padding:0}
 *{print-color-adjust:exact;-webkit-print-color-adjust:exact}
 pre.code{white-space:pre-wrap;overflow-wrap:anywhere}
 .scroll{overflow:visible;background:none}
 .wide th,.wide td{padding-right:.45rem;font-size:.66rem}
 .wide :is(th,td):nth-child(n+9):not(:last-child){display:none}
 h2,h3,summary{break-after:avoid}
 .card,.callout,figure,tr,.causes li{break-inside:avoid}
}
@media print{
 details::details-content{content-visibility:visible;block-size:auto}
}
"""


def _variables(colours: dict[str, str], ramp: tuple[str, ...]) -> str:
    named = [*colours.items(), *((f"ramp-{i}", colour) for i, colour in enumerate(ramp))]
    return "".join(f"--{name}:{colour};" for name, colour in named)


def style_sheet() -> str:
    """The style sheet. Paper is light whatever the screen is, so the dark colours are for screens alone."""
    cells = "".join(f".c{i}{{fill:var(--ramp-{i});background:var(--ramp-{i})}}" for i in range(STEPS))
    return (
        f":root{{color-scheme:light dark;{_variables(LIGHT, LIGHT_RAMP)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK, DARK_RAMP)}}}}}\n"
        "@media print{:root{color-scheme:light}}"
        f"{_RULES}"
        f"{cells}.cz{{fill:var(--zero);background:var(--zero)}}.ci{{fill:var(--infinite);background:var(--infinite)}}\n"
    )
