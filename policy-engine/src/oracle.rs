//! The rules read literally, from the Model alone.
