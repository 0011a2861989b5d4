//! The backend whose CPU is software.
