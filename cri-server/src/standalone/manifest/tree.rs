//! A YAML (and so JSON) document as a tree that knows its lines, and serde's view of it.
//!
//! The Kubernetes types ignore fields that they do not know. A person who misspells a field must hear of it, so a typed
//! value is read through [`Reader`], which sees what the types throw away and notes it with its path. Nothing here knows
//! what a pod is.

use std::{cell::RefCell, fmt, rc::Rc};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_saphyr::Spanned;

/// A value and the line that it begins on.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) line: u64,
    pub(super) value: Value,
}

/// What stands in a document, after YAML's core schema.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a map; its own line, since the value of `spec:` begins below it.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) line: u64,
}

impl Value {
    /// Whether it says nothing: `field:` alone, `{}` and `[]`, as tools write them for what is not set.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Null => true,
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.is_empty(),
            Self::Bool(_) | Self::Int(_) | Self::Uint(_) | Self::Float(_) | Self::Text(_) => false,
        }
    }

    fn unexpected(&self) -> de::Unexpected<'_> {
        match self {
            Self::Null => de::Unexpected::Unit,
            Self::Bool(value) => de::Unexpected::Bool(*value),
            Self::Int(value) => de::Unexpected::Signed(*value),
            Self::Uint(value) => de::Unexpected::Unsigned(*value),
            Self::Float(value) => de::Unexpected::Float(*value),
            Self::Text(value) => de::Unexpected::Str(value),
            Self::List(_) => de::Unexpected::Seq,
            Self::Map(_) => de::Unexpected::Map,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_none<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(i64::try_from(value).map_or(Value::Uint(value), Value::Int))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Float(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_string<E>(self, value: String) -> Result<Value, E> {
                Ok(Value::Text(value))
            }

            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
                Value::deserialize(deserializer)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = access.next_element::<Node>()? {
                    items.push(item);
                }
                Ok(Value::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(key) = access.next_key::<Spanned<String>>()? {
                    let line = key.referenced.line();
                    entries.push((Key { name: key.value, line }, access.next_value::<Node>()?));
                }
                Ok(Value::Map(entries))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}

/// A place in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) path: String,
    pub(super) line: u64,
}

/// Why a typed value could not be read, and where.
#[derive(Debug)]
pub(super) struct ReadError {
    pub(super) place: Option<Place>,
    pub(super) message: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { place: None, message: message.to_string() }
    }
}

/// Reads a typed value; `unknown` gets the place of each field that the type does not have.
pub(super) fn read<'de, T: Deserialize<'de>>(node: &'de Node, unknown: &mut Vec<Place>) -> Result<T, ReadError> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let reader = Reader { node, path: String::new(), line: node.line, unknown: Rc::clone(&found), is_quantity: false };
    let result = T::deserialize(reader);
    unknown.append(&mut found.borrow_mut());
    result
}

/// `spec` and `containers` make `spec.containers`.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

struct Reader<'de> {
    node: &'de Node,
    path: String,
    line: u64,
    unknown: Rc<RefCell<Vec<Place>>>,
    // `cpu: 1` is a number in YAML and a string in the type; the API server takes both.
    is_quantity: bool,
}

impl<'de> Reader<'de> {
    fn below(&self, node: &'de Node, path: String, line: u64) -> Self {
        Self { node, path, line, unknown: Rc::clone(&self.unknown), is_quantity: false }
    }

    fn place(&self) -> Place {
        Place { path: self.path.clone(), line: self.line }
    }

    /// The innermost reader that fails knows the place.
    fn located<T>(place: Place, result: Result<T, ReadError>) -> Result<T, ReadError> {
        result.map_err(|error| ReadError { place: error.place.or(Some(place)), ..error })
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let place = self.place();
        let result = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Uint(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::List(items) => visitor.visit_seq(Items { reader: &self, rest: items.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(Entries { reader: &self, rest: entries.iter(), value: None }),
        };
        Self::located(place, result)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(Self { is_quantity: name == "Quantity", ..self })
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let text = match (&self.node.value, self.is_quantity) {
            (Value::Text(text), _) => return visitor.visit_borrowed_str(text),
            (Value::Int(value), true) => value.to_string(),
            (Value::Uint(value), true) => value.to_string(),
            (Value::Float(value), true) => value.to_string(),
            (value, _) => {
                let error: ReadError = de::Error::invalid_type(value.unexpected(), &"a string");
                let message = match value {
                    Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Float(_) => {
                        format!("{} (put it in quotes)", error.message)
                    }
                    _ => error.message,
                };
                return Err(ReadError { place: Some(self.place()), message });
            }
        };
        visitor.visit_string(text)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_string(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.unknown.borrow_mut().push(self.place());
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct
        map struct enum identifier
    }
}

struct Items<'a, 'de> {
    reader: &'a Reader<'de>,
    rest: std::iter::Enumerate<std::slice::Iter<'de, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        let reader = self.reader.below(node, format!("{}[{index}]", self.reader.path), node.line);
        Reader::located(reader.place(), seed.deserialize(reader)).map(Some)
    }
}

struct Entries<'a, 'de> {
    reader: &'a Reader<'de>,
    rest: std::slice::Iter<'de, (Key, Node)>,
    value: Option<(&'de Key, &'de Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let Some((key, node)) = self.rest.next() else { return Ok(None) };
        self.value = Some((key, node));
        seed.deserialize(key.name.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let (key, node) = self.value.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let reader = self.reader.below(node, join(&self.reader.path, &key.name), key.line);
        Reader::located(reader.place(), seed.deserialize(reader))
    }
}
