//! HTML that is well formed and in which all text is escaped, because there is no other way to make it.

use std::fmt::{Display, Write};

/// Elements and text, ready to stand in a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Markup(String);

impl Markup {
    pub fn text(text: impl Display) -> Self {
        Self(escaped(&text.to_string()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromIterator<Markup> for Markup {
    fn from_iter<I: IntoIterator<Item = Self>>(parts: I) -> Self {
        Self(parts.into_iter().map(|part| part.0).collect())
    }
}

/// An element that is being written. Its name and those of its attributes are ours; everything else may be anybody's.
#[derive(Debug, Clone)]
pub struct Element {
    name: &'static str,
    attributes: String,
    content: String,
}

impl Element {
    pub fn new(name: &'static str) -> Self {
        Self { name, attributes: String::new(), content: String::new() }
    }

    /// One with a class, which most have.
    pub fn classed(name: &'static str, class: impl Display) -> Self {
        Self::new(name).with("class", class)
    }

    /// A style sheet of ours, which stands in a page as it is.
    pub fn style(sheet: &'static str) -> Self {
        Self { name: "style", attributes: String::new(), content: format!("\n{sheet}") }
    }

    pub fn with(mut self, attribute: &'static str, value: impl Display) -> Self {
        write!(self.attributes, " {attribute}=\"{}\"", escaped(&value.to_string())).expect("a string takes everything");
        self
    }

    pub fn text(self, text: impl Display) -> Self {
        self.put(Markup::text(text))
    }

    pub fn put(mut self, child: impl Into<Markup>) -> Self {
        self.content += &child.into().0;
        self
    }

    pub fn put_all<M: Into<Markup>>(self, children: impl IntoIterator<Item = M>) -> Self {
        children.into_iter().fold(self, Self::put)
    }
}

impl From<Element> for Markup {
    fn from(Element { name, attributes, content }: Element) -> Self {
        match name {
            // This one must not be closed.
            "meta" => Self(format!("<{name}{attributes}>\n")),
            _ => Self(format!("<{name}{attributes}>{content}</{name}>")),
        }
    }
}

impl From<Option<Element>> for Markup {
    fn from(element: Option<Element>) -> Self {
        element.map(Self::from).unwrap_or_default()
    }
}

/// Text that means nothing but itself, also within an attribute. Characters that a page must not hold are replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            c if c.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn elements_nest() {
        let item = Element::classed("li", "a \"b\"").text("1 < 2");
        let list = Element::new("ul").put(item).put(None::<Element>).put_all([Markup::text("&"), Markup::text("'")]);
        let text = r#"<ul><li class="a &quot;b&quot;">1 &lt; 2</li>&amp;&#39;</ul>"#;
        assert_eq!(Markup::from(list).as_str(), text);
    }

    proptest! {
        #[test]
        fn no_text_is_taken_for_markup(text in any::<String>()) {
            let escaped = escaped(&text);
            prop_assert!(!escaped.contains(['<', '>', '"', '\'']), "{escaped:?}");
            let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
            let read = entities.iter().fold(escaped, |read, (entity, text)| read.replace(entity, text));
            let plain = |c: char| if c.is_control() && c != '\t' && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
            prop_assert_eq!(read, text.chars().map(plain).collect::<String>());
        }
    }
}
