//! One macro for the small closed sets of words that cross the API as strings.
//!
//! A word set is an enum whose D-Bus and JSON form is the word itself, so a reader of `busctl`
//! output sees `running` and not `1`. An unknown word is an error that names the allowed ones.

/// Declares an enum that is spelled as a string everywhere outside the process.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident : $what:literal {
            $( $(#[$vmeta:meta])* $variant:ident = $word:literal ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, zbus::Type)]
        #[zbus(signature = "s")]
        $vis enum $name {
            $( $(#[$vmeta])* $variant ),+
        }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &'static [Self] = &[ $( Self::$variant ),+ ];

            /// The word that stands for this value on D-Bus, in JSON and on the command line.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word ),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::vocabulary::UnknownWord;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                match s {
                    $( $word => Ok(Self::$variant), )+
                    other => Err($crate::vocabulary::UnknownWord {
                        what: $what,
                        got: other.to_owned(),
                        allowed: &[ $( $word ),+ ],
                    }),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let word = std::borrow::Cow::<'de, str>::deserialize(d)?;
                word.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use words;

/// A word outside its closed set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {got:?}; allowed: {}", .allowed.join(", "))]
pub struct UnknownWord {
    /// What the word was meant to say, e.g. `stdio mode`.
    pub what: &'static str,
    /// What was given.
    pub got: String,
    /// The words that would have been accepted.
    pub allowed: &'static [&'static str],
}
