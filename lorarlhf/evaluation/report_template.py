"""The HTML page that `report` fills in: `$style`, `$title`, `$lead`, `$sections`, all escaped."""

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { --page: #fbfaf8; --card: #fff; --text: #1f2328; --soft: #57606a; --line: #d8dce0; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --card: #1d2125; --text: #e3e6e9; --soft: #a5adb6; --line: #3a4047; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--text); font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
.lead { font-size: 1.15rem; max-width: 44rem; margin: 0; }
.soft, caption, figcaption, thead th { color: var(--soft); font-size: .875rem; }
table { border-collapse: collapse; width: 100%; max-width: 44rem; margin: 0 0 1.5rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .75rem .4rem 0; text-align: left;
  vertical-align: top; font-weight: 400; }
.grid { display: grid; gap: 1.25rem; }
figure, article { margin: 0; min-width: 0; padding: .9rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; }
.plot { background: #fff; border-radius: .25rem; }
.plot svg { display: block; width: 100%; height: auto; }
.plot svg * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { font-family: system-ui, sans-serif !important; }
figcaption { margin-top: .6rem; }
.answers { display: grid; gap: .9rem; margin-top: .75rem; }
.said { white-space: pre-wrap; margin: 0; }
.verdict { margin: .75rem 0 0; }
h4 { font-size: .875rem; margin: 0 0 .25rem; }
.answers > div { border-top: 1px solid var(--line); padding-top: .6rem; min-width: 0; }
@media (min-width: 44rem) { .plots { grid-template-columns: 1fr 1fr; }
  .answers { grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); } }
$style
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$sections
</main>
</body>
</html>
""")
