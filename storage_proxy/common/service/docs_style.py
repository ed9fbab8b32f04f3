"""How the page of an API's documents looks, in light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfbfa; --card: #fff; --text: #1d2327; --quiet: #5d6871; --line: #e2e5e8; --code: #f2f4f5;
  --link: #0b5fae; --get: #0b6bcb; --post: #14804a; --put: #9a5b00; --delete: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14181b; --card: #1b2125; --text: #e3e7ea; --quiet: #9aa6af; --line: #2d353b; --code: #242c31;
    --link: #7db8f5; --get: #6fb1f7; --post: #5cc98f; --put: #e0a94a; --delete: #f28b82;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body {
  margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  display: grid; grid-template-columns: 19rem minmax(0, 56rem); justify-content: center; gap: 2.5rem;
}
nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow: auto; padding: 2rem 0 2rem 1rem; }
nav p, h4 {
  margin: 1.4rem 0 .4rem; color: var(--quiet); font-size: .74rem; font-weight: 600; letter-spacing: .06em;
  text-transform: uppercase;
}
nav ul { list-style: none; margin: 0; padding: 0; }
nav a {
  display: block; padding: .22rem .4rem; border-radius: 6px; color: inherit; text-decoration: none;
  font-size: .86rem;
}
nav a:hover { background: var(--code); }
main { padding: 2rem 1rem 5rem 0; }
h1 { margin: 0 0 .3rem; font-size: 1.9rem; letter-spacing: -.015em; }
h1 small { color: var(--quiet); font-size: .9rem; font-weight: 400; letter-spacing: 0; }
h2 { margin: 2.6rem 0 1rem; font-size: 1.15rem; }
h3 { margin: 0; font-size: 1.02rem; display: flex; align-items: center; gap: .6rem; flex-wrap: wrap; }
h3 code { background: none; padding: 0; font-size: 1rem; }
a { color: var(--link); }
article {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.3rem 1.5rem;
  margin: 0 0 1.2rem;
}
article p { margin: .5rem 0 0; }
.summary { font-weight: 600; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .86em; }
code { background: var(--code); border-radius: 4px; padding: .08em .32em; overflow-wrap: anywhere; }
pre {
  background: var(--code); border-radius: 8px; margin: 0; padding: .8rem 1rem; overflow-x: auto; line-height: 1.5;
  font-size: .9em;
}
pre code { background: none; padding: 0; overflow-wrap: normal; }
.verb {
  font: 700 .68rem/1 ui-monospace, Menlo, Consolas, monospace; letter-spacing: .03em;
  border: 1px solid currentcolor; border-radius: 5px; padding: .22em .42em;
}
.get {
  color: var(--get); } .post { color: var(--post); } .put { color: var(--put); } .delete { color: var(--delete);
}
.lock {
  font-size: .7rem; font-weight: 500; color: var(--quiet); border: 1px solid var(--line); border-radius: 99px;
  padding: .05em .65em;
}
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
td { border-top: 1px solid var(--line); padding: .45rem .9rem .45rem 0; vertical-align: top; }
td:first-child { white-space: nowrap; width: 1%; }
td:nth-child(2) { color: var(--quiet); min-width: 8rem; width: 25%; }
td em { display: block; font-size: .74rem; font-style: normal; color: var(--quiet); margin: .1rem 0 0 .32em; }
dl { margin: 0; display: grid; grid-template-columns: 3.2rem minmax(0, 1fr); font-size: .92rem; }
dt, dd { margin: 0; padding: .45rem 0; border-top: 1px solid var(--line); }
dt { font-weight: 700; font-variant-numeric: tabular-nums; }
dd table { margin-top: .4rem; }
.good { color: var(--post); } .bad { color: var(--delete); }
@media (max-width: 60rem) {
  body { display: block; padding: 0 1rem; }
  nav { position: static; max-height: none; padding: 1rem 0 0; }
  main { padding: 1rem 0 4rem; }
}
"""
