//! The page around the sections, and text made safe for it.

/// Text as HTML may hold it, in content and in attributes.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// A table; the first row is its head. Cells are HTML already; the first column names the row.
pub(crate) fn table(caption: &str, rows: &[Vec<String>]) -> String {
    let Some((head, rows)) = rows.split_first() else { return String::new() };
    let mut text = {
        let caption = escape(caption);
        // Where it is wider than the screen it scrolls: then it must be reached without a mouse, and have a name.
        format!(
            "<div class=\"wide\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\"><table><caption>{caption}</caption><thead><tr>"
        )
    };
    head.iter().for_each(|cell| text += &format!("<th scope=\"col\">{cell}</th>"));
    text += "</tr></thead><tbody>";
    for row in rows {
        text += "<tr>";
        for (column, cell) in row.iter().enumerate() {
            text += &if column == 0 {
                format!("<th scope=\"row\">{cell}</th>")
            } else {
                format!("<td>{cell}</td>")
            };
        }
        text += "</tr>";
    }
    text + "</tbody></table></div>"
}

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1d2430;--soft:#5a6475;--paper:#fff;--panel:#f5f6f9;--line:#d7dbe3;--a:#2463c4;--b:#c2570c;--c:#0f7a5a;--d:#8a3fb0;--mark:#ffe2a8}
@media(prefers-color-scheme:dark){:root{--ink:#e7eaf0;--soft:#a3adbd;--paper:#14181f;--panel:#1d232d;--line:#353d4a;--a:#7fb0ff;--b:#ffab6b;--c:#5fd0a6;--d:#d59cf5;--mark:#6b4d0c}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:72rem;margin:0 auto;padding:1rem}h1{font-size:1.6rem}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}h3{margin-bottom:.4rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}caption{text-align:left;color:var(--soft);padding:.3rem 0}
th,td{padding:.35rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}th[scope=row],thead th:first-child{text-align:left}
pre{background:var(--panel);padding:.8rem;overflow-x:auto;border-radius:.4rem}code{font-size:.9em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}figure{margin:0;background:var(--panel);border-radius:.5rem;padding:.6rem}
figcaption{color:var(--soft);font-size:.9rem}svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.axis{stroke:var(--line)}.s0{stroke:var(--a);--f:var(--a)}.s1{stroke:var(--b);--f:var(--b)}.s2{stroke:var(--c);--f:var(--c)}.s3{stroke:var(--d);--f:var(--d)}
.k0{color:var(--a)}.k1{color:var(--b)}.k2{color:var(--c)}.k3{color:var(--d)}
.curve{fill:none;stroke-width:1.8}.dot,.bar{fill:var(--f);stroke:none}.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.samples p{background:var(--panel);padding:.8rem;border-radius:.4rem;white-space:pre-wrap;overflow-wrap:anywhere;margin:.3rem 0}mark{background:var(--mark);color:inherit;border-bottom:2px solid var(--b)}
.bad{color:var(--b);font-weight:600}footer{color:var(--soft);margin:3rem 0 1rem}details{margin:.5rem 0}
";

/// The whole document.
pub(crate) fn document(title: &str, body: &str, version: &str) -> String {
    let (title, version) = (escape(title), escape(version));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
         <title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>{body}\
         <footer>Made by slmc {version}. This page loads nothing.</footer></main></body></html>\n"
    )
}
