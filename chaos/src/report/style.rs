//! The looks of the page, light and dark.

/// Inline style sheet.
pub(super) const STYLE: &str = "
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1a2230;--soft:#5b6676;--line:#dfe4ea;
--good:#0f7b4f;--good-bg:#e2f4ea;--bad:#b3261e;--bad-bg:#fbe6e4;--warn:#8a5a00;--warn-bg:#fdf1d7;
--a:#2563a8;--b:#c2571a;--c:#4b8f3a;--d:#7d4fa8;--e:#a83a63;--f:#3a8f93;--band:#d9480f;--grid:#e6eaef}
@media (prefers-color-scheme:dark){:root{--bg:#11151b;--card:#1a2029;--ink:#e6eaf0;--soft:#97a3b4;
--line:#2c3542;--good:#5fd39a;--good-bg:#12352a;--bad:#ff8a80;--bad-bg:#43201e;--warn:#f1c668;
--warn-bg:#3b2f14;--a:#6fa8e8;--b:#f0935a;--c:#8ccf78;--d:#bb94e6;--e:#e887ab;--f:#74cfd3;
--band:#ff922b;--grid:#29313d}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,Segoe UI,Roboto,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 64px}
h1{font-size:26px;line-height:1.2;margin:0}h2{font-size:18px;margin:36px 0 12px}
p{margin:6px 0}.soft{color:var(--soft)}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0 0 14px}
.verdict{display:flex;gap:18px;align-items:center;border-left:8px solid var(--tone)}
.badge{background:var(--tone-bg);color:var(--tone);font-weight:700;font-size:20px;padding:10px 16px;border-radius:8px;white-space:nowrap}
.good{--tone:var(--good);--tone-bg:var(--good-bg)}.bad{--tone:var(--bad);--tone-bg:var(--bad-bg)}
.warn{--tone:var(--warn);--tone-bg:var(--warn-bg)}
.pill{display:inline-block;background:var(--tone-bg);color:var(--tone);border-radius:999px;padding:1px 9px;font-size:13px;font-weight:600;white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0 0 14px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:22px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;font-size:13px}td.n,th.n{text-align:right;white-space:nowrap}
tr:last-child td{border-bottom:0}td.over{color:var(--bad);font-weight:700}
td.cell{text-align:center}th.turn{text-align:center;font-size:12px;line-height:1.25}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--bg);border:1px solid var(--line);border-radius:8px;padding:12px;overflow-x:auto;margin:8px 0}
details{margin:10px 0}summary{cursor:pointer;color:var(--soft)}
ul{margin:6px 0;padding-left:20px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}
svg .name{fill:var(--ink);font-weight:600;font-size:12px}
.grid{stroke:var(--grid);stroke-width:1}.axis{stroke:var(--line);stroke-width:1}
.band{fill:var(--band);opacity:.13}.band-edge{stroke:var(--band);stroke-width:1;opacity:.65}
.band-name{fill:var(--band)!important;font-weight:600}
.phase{stroke:var(--soft);stroke-dasharray:2 4;opacity:.5}
.l-a{stroke:var(--a);fill:none;stroke-width:1.6}.l-b{stroke:var(--b);fill:none;stroke-width:1.6}
.f-a{fill:var(--a);opacity:.85}.f-b{fill:var(--b);opacity:.85}.f-c{fill:var(--c);opacity:.85}
.f-d{fill:var(--d);opacity:.85}.f-e{fill:var(--e);opacity:.85}.f-f{fill:var(--f);opacity:.85}
.f-bad{fill:var(--bad)}.f-soft{fill:var(--soft)}
.key{display:flex;flex-wrap:wrap;gap:4px 16px;color:var(--soft);font-size:13px;margin:0 0 6px}
.key i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px;vertical-align:-1px}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
";
