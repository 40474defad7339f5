//! Values of a parsed file, with where they are.

use alloc::{borrow::ToOwned, string::String, vec::Vec};

use ::toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Place, Problem, TomlError};

/// What reading gives.
pub(super) type Read<'t, T> = Result<T, TomlError<'t>>;

/// A parsed file.
pub(super) struct Document<'t> {
    text: &'t str,
    table: DeTable<'t>,
}

impl<'t> Document<'t> {
    /// Parses a file that has no other sections than these.
    pub(super) fn parse(text: &'t str, sections: &'static [&'static str]) -> Read<'t, Self> {
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(text.len(), |span| span.start);
            fail(text, at, Place::default(), Problem::Syntax(error.message().into()))
        })?;
        let document = Self { text, table: table.into_inner() };
        known(text, "", &document.table, sections)?;
        Ok(document)
    }

    /// A section that has no other fields than these; none if it is not there.
    pub(super) fn section(
        &self,
        name: &'static str,
        fields: &'static [&'static str],
    ) -> Read<'t, Option<Section<'_, 't>>> {
        let Some((key, value)) = self.table.get_key_value(name) else { return Ok(None) };
        let text = self.text;
        let DeValue::Table(table) = value.get_ref() else {
            let problem =
                Problem::Type { expected: "a section", found: value.get_ref().type_str() };
            let place = Place { section: name, ..Place::default() };
            return Err(fail(text, value.span().start, place, problem));
        };
        known(text, name, table, fields)?;
        Ok(Some(Section { text, name, at: key.span().start, table }))
    }

    /// That a section is missing.
    pub(super) fn missing(&self, section: &'static str) -> TomlError<'t> {
        let place = Place { section, ..Place::default() };
        fail(self.text, self.text.len(), place, Problem::Missing)
    }

    /// An error at the value that was read for `place`, the element with this index, or as near as
    /// possible.
    pub(super) fn error(
        &self,
        place: Place<'t>,
        element: Option<usize>,
        problem: Problem<'t>,
    ) -> TomlError<'t> {
        let section = self.table.get_key_value(place.section);
        let field = section.and_then(|(_, value)| value.get_ref().get(place.field));
        let entry = place.entry.and_then(|index| field?.get_ref().get(index));
        let element = element.and_then(|index| entry?.get_ref().get(index));
        let near = element.or(entry).or(field).map(Spanned::span);
        let span = near.or(section.map(|(key, _)| key.span()));
        fail(self.text, span.map_or(0, |span| span.start), place, problem)
    }
}

/// A section of a file.
pub(super) struct Section<'r, 't> {
    text: &'t str,
    name: &'static str,
    at: usize,
    table: &'r DeTable<'t>,
}

impl<'r, 't> Section<'r, 't> {
    fn place(&self, field: &'static str) -> Place<'t> {
        Place { section: self.name, field, ..Place::default() }
    }

    /// A field, if it is there.
    pub(super) fn get(&self, name: &'static str) -> Option<Value<'r, 't>> {
        let value = self.table.get(name)?;
        Some(Value { text: self.text, place: self.place(name), value })
    }

    /// A field that must be there.
    pub(super) fn need(&self, name: &'static str) -> Read<'t, Value<'r, 't>> {
        self.get(name).ok_or_else(|| fail(self.text, self.at, self.place(name), Problem::Missing))
    }
}

/// A value of a file.
#[derive(Clone, Copy)]
pub(super) struct Value<'r, 't> {
    text: &'t str,
    place: Place<'t>,
    value: &'r Spanned<DeValue<'t>>,
}

impl<'r, 't> Value<'r, 't> {
    fn fail(&self, problem: Problem<'t>) -> TomlError<'t> {
        fail(self.text, self.value.span().start, self.place, problem)
    }

    fn wrong_type(&self, expected: &'static str) -> TomlError<'t> {
        self.fail(Problem::Type { expected, found: self.value.get_ref().type_str() })
    }

    /// That the value cannot be this.
    pub(super) fn wrong(&self, expected: &'static str) -> TomlError<'t> {
        let found = self.text.get(self.value.span()).unwrap_or_default();
        self.fail(Problem::Value { found, expected })
    }

    pub(super) fn number(self) -> Read<'t, usize> {
        let DeValue::Integer(number) = self.value.get_ref() else {
            return Err(self.wrong_type("an integer"));
        };
        let digits = number.as_str();
        if digits.starts_with('-') {
            return Err(self.wrong("must not be negative"));
        }
        let number = i64::from_str_radix(digits, number.radix());
        number
            .ok()
            .and_then(|number| usize::try_from(number).ok())
            .ok_or_else(|| self.wrong("is beyond TOML's largest integer, 0x7fff_ffff_ffff_ffff"))
    }

    pub(super) fn string(self) -> Read<'t, &'r str> {
        self.value.get_ref().as_str().ok_or_else(|| self.wrong_type("a string"))
    }

    pub(super) fn owned(self) -> Read<'t, String> {
        Ok(self.string()?.to_owned())
    }

    pub(super) fn is_string(self) -> bool {
        self.value.get_ref().is_str()
    }

    /// The entries of a list.
    pub(super) fn list(self) -> Read<'t, impl Iterator<Item = Self>> {
        let array = self.value.get_ref().as_array().ok_or_else(|| self.wrong_type("a list"))?;
        Ok(array.iter().enumerate().map(move |(index, value)| {
            // In a list within a list the outer entry keeps its number.
            let entry = self.place.entry.or(Some(index));
            Self { place: Place { entry, ..self.place }, value, ..self }
        }))
    }

    /// What `read` makes of each entry of a list.
    pub(super) fn each<T>(self, read: impl Fn(Self) -> Read<'t, T>) -> Read<'t, Vec<T>> {
        self.list()?.map(read).collect()
    }

    /// The elements of an entry, which has as many as there are names.
    pub(super) fn elements<const N: usize>(
        self,
        names: &'static [&'static str; N],
    ) -> Read<'t, [Self; N]> {
        let named = self.list()?.zip(names);
        let named = named
            .map(|(value, &element)| Self { place: Place { element, ..value.place }, ..value });
        let count = self.list()?.count();
        let elements: Vec<_> = named.collect();
        match elements.try_into() {
            Ok(elements) if count == N => Ok(elements),
            _ => Err(self.fail(Problem::Length { expected: names, found: count })),
        }
    }
}

/// Checks that a table has no other keys than `expected`.
fn known<'t>(
    text: &'t str,
    section: &'static str,
    table: &DeTable<'t>,
    expected: &'static [&'static str],
) -> Read<'t, ()> {
    let unknown = table.iter().filter(|(key, _)| !expected.contains(&key.get_ref().as_ref()));
    // A table is in the order of its keys: name the first in the file.
    match unknown.map(|(key, _)| key.span()).min_by_key(|span| span.start) {
        Some(span) => {
            let field = text.get(span.clone()).unwrap_or_default();
            let place = Place { section, field, ..Place::default() };
            Err(fail(text, span.start, place, Problem::Unknown { expected }))
        }
        None => Ok(()),
    }
}

/// An error at this offset.
fn fail<'t>(text: &str, at: usize, place: Place<'t>, problem: Problem<'t>) -> TomlError<'t> {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    TomlError { line, column, place, problem }
}
