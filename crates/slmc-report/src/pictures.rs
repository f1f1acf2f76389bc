//! A page's charts as files of their own.

/// What a chart takes from the page's style, in colours that every program knows.
const STYLE: &str = "text{fill:#5a6475;font:11px system-ui,sans-serif}.axis{stroke:#d7dbe3}.curve{fill:none;stroke-width:1.8}\
    .s0{stroke:#2463c4}.s1{stroke:#c2570c}.s2{stroke:#0f7a5a}.s3{stroke:#8a3fb0}.dot,.bar{stroke:none}\
    .bar.s0,.dot.s0{fill:#2463c4}.dot.s1{fill:#c2570c}.paper{fill:#fff}";

/// A chart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// A name for its file, without an ending: its number on the page and its title.
    pub name: String,
    /// The document (SVG 1.1).
    pub svg: String,
}

/// The charts of a page that [`page`](crate::page) made, in its order.
pub fn pictures(page: &str) -> Vec<Picture> {
    let parts = page.split("<svg ").skip(1).filter_map(|rest| rest.split_once("</svg>"));
    let picture = |(index, (content, _)): (usize, (&str, &str))| {
        let (attributes, inside) = content.split_once('>')?;
        let title = inside.split_once("<title>")?.1.split_once("</title>")?.0;
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1040\" height=\"520\" {attributes}><style>{STYLE}</style>\
             <rect class=\"paper\" width=\"100%\" height=\"100%\"/>{inside}</svg>\n"
        );
        Some(Picture { name: format!("{:02}-{}", index + 1, file_name(title)), svg })
    };
    parts.enumerate().filter_map(picture).collect()
}

/// Letters and digits of a title, in small letters, and a dash for what is between them.
fn file_name(title: &str) -> String {
    let mut name = String::new();
    for c in title.chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c.to_ascii_lowercase());
        } else if !name.ends_with('-') && !name.is_empty() {
            name.push('-');
        }
    }
    name.truncate(60);
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{Curves, RunView, page, pictures};

    #[test]
    fn every_chart_of_a_page_stands_alone() {
        let tensors = json!([{"tensor": "block 0 down", "relative_error": 0.1}, {"tensor": "a<b", "relative_error": 0.2}]);
        let run = RunView {
            name: "x".to_owned(),
            results: vec![json!({"name": "quantize", "report": {"tensors": tensors}})],
            curves: vec![Curves {
                name: "train".to_owned(),
                curves: vec![("loss".to_owned(), vec![(0.0, 2.0), (1.0, 1.0)])],
            }],
            ..RunView::default()
        };
        let html = page(&[run], "0");
        let found = pictures(&html);
        assert_eq!(found.len(), html.matches("<figure>").count());
        let names: Vec<&str> = found.iter().map(|picture| picture.name.as_str()).collect();
        assert!(names.iter().any(|name| name.ends_with("training-of-train")), "{names:?}");
        assert!(names.iter().any(|name| name.contains("quantize-relative-error-by-tensor")), "{names:?}");
        for picture in &found {
            assert!(picture.svg.starts_with("<svg xmlns=") && picture.svg.ends_with("</svg>\n"));
            assert!(!picture.svg.contains("var(") && picture.svg.matches("<svg").count() == 1);
        }
    }
}
