//! Weighs a request body in one pass, without building a tree of it: how much text, how many blobs, and whether the
//! provider would have to fetch something.
//!
//! Pure. Strings are weighed decoded. Nesting deeper than serde_json's limit (128) is an error.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

/// What a body weighs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes of keys and strings, without blobs, and one for each number or literal.
    pub text_bytes: u64,
    /// Pictures and documents in base64.
    pub blobs: u64,
    /// The first URL that the provider would have to fetch.
    pub remote_content: Option<String>,
}

/// Weighs a JSON text.
pub fn weigh(body: &[u8]) -> Result<Weight, serde_json::Error> {
    let mut weight = Weight::default();
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    Walk {
        weight: &mut weight,
        at: Place::Top,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(weight)
}

/// Where in the body a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The request itself.
    Top,
    /// Where the API puts content.
    Content,
    /// The value of a key under which the API puts addresses to fetch.
    Address,
    /// The value of a key under which the API puts base64.
    Blob,
    /// Arguments of a tool call, or a tool's schema: the agent's own words, whatever their keys are called.
    Opaque,
}

impl Place {
    fn below(self, key: &str) -> Self {
        match key {
            _ if self == Self::Opaque => Self::Opaque,
            "arguments" | "input_schema" | "parameters" | "metadata" => Self::Opaque,
            "url" | "image_url" | "file_url" | "server_url" => Self::Address,
            "data" | "file_data" => Self::Blob,
            _ => Self::Content,
        }
    }
}

struct Walk<'w> {
    weight: &'w mut Weight,
    at: Place,
}

impl Walk<'_> {
    fn literal<E>(self) -> Result<(), E> {
        self.weight.text_bytes += 1;
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        let inline = text
            .trim_start()
            .get(..5)
            .is_some_and(|s| s.eq_ignore_ascii_case("data:"));
        if self.at == Place::Address && text.contains(':') && !inline {
            self.weight
                .remote_content
                .get_or_insert_with(|| text.chars().take(300).collect());
        }
        // Short ones are weighed as text in any case: no harm done.
        let blob = matches!(self.at, Place::Blob | Place::Address) && text.len() > 256;
        if blob {
            self.weight.blobs += 1;
        } else {
            self.weight.text_bytes += text.len() as u64 + 1;
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.literal()
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.literal()
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.literal()
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.literal()
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.literal()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq
            .next_element_seed(Walk {
                weight: &mut *self.weight,
                at: self.at,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // Anthropic's tool calls hold their arguments as an object under `input`, told apart by `type`, before or
        // after it; OpenAI's `input`, at the top, is the conversation.
        let mut tool_call = false;
        let mut in_input = None;
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            self.weight.text_bytes += key.len() as u64 + 1;
            let top = self.at == Place::Top;
            if key == "type" && !top && self.at != Place::Opaque {
                let kind: serde_json::Value = map.next_value()?;
                let kind = kind.as_str().unwrap_or_default();
                tool_call = kind == "tool_use";
                self.weight.text_bytes += kind.len() as u64;
                continue;
            }
            let at = self.at.below(&key);
            if key == "input" && !top {
                let before = self.weight.remote_content.take();
                map.next_value_seed(Walk {
                    weight: &mut *self.weight,
                    at,
                })?;
                in_input = std::mem::replace(&mut self.weight.remote_content, before);
            } else {
                map.next_value_seed(Walk {
                    weight: &mut *self.weight,
                    at,
                })?;
            }
        }
        if !tool_call && self.weight.remote_content.is_none() {
            self.weight.remote_content = in_input;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(value: &serde_json::Value) -> Weight {
        weigh(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_blob_counts_as_one_however_large() {
        let picture = "A".repeat(100_000);
        let w = of(
            &json!({"messages":[{"content":[{"type":"image","source":{"type":"base64","data":picture}}]}]}),
        );
        assert_eq!(w.blobs, 1);
        assert!(w.text_bytes < 200, "{w:?}");
        let w = of(
            &json!({"messages":[{"content":[{"image_url":{"url":format!("data:image/png;base64,{picture}")}}]}]}),
        );
        assert_eq!((w.blobs, w.remote_content), (1, None));
    }

    #[test]
    fn addresses_to_fetch_are_found_and_the_agents_own_words_are_not_searched() {
        let fetch =
            json!({"input":[{"content":[{"type":"input_image","image_url":"HTTPS://e.org/x"}]}]});
        assert_eq!(
            of(&fetch).remote_content.as_deref(),
            Some("HTTPS://e.org/x")
        );
        let own = json!({"messages":[{"content":[{"type":"tool_use","name":"WebFetch","input":{"url":"https://e.org"}},
            {"type":"text","text":"see https://e.org"}]}],
            "tools":[{"input_schema":{"properties":{"url":{"default":"https://e.org"}},"url":"https://e.org"}}]});
        assert_eq!(of(&own).remote_content, None);
        let typed_first = br#"{"messages":[{"type":"tool_use","input":{"url":"https://e.org"}}]}"#;
        assert_eq!(weigh(typed_first).unwrap().remote_content, None);
        let disguised = br#"{"type":"tool_use","input":[{"image_url":"https://e.org"}]}"#;
        assert!(weigh(disguised).unwrap().remote_content.is_some());
    }

    #[test]
    fn no_spelling_of_an_address_hides_it() {
        for url in [
            "http://e.org",
            " https://e.org",
            "\thttps://e.org",
            "gs://bucket/x",
            "//e.org:80/",
        ] {
            assert_eq!(
                of(&json!({"source": {"url": url}}))
                    .remote_content
                    .as_deref(),
                Some(url)
            );
        }
        assert_eq!(
            of(&json!({"source": {"url": " DATA:image/png;base64,AA"}})).remote_content,
            None
        );
    }

    #[test]
    fn text_is_weighed_decoded() {
        assert_eq!(weigh(br#""\u0041\u0041""#).unwrap().text_bytes, 3);
        assert!(weigh(b"{} x").is_err());
        assert!(weigh("[".repeat(500).as_bytes()).is_err());
    }
}
