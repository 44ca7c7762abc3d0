// SPDX-License-Identifier: GPL-2.0

//! Nodes of a [`Tree`](super::tree::Tree), and paths through it.

/// The number of no node. Numbers of nodes are below it.
pub const NIL: u32 = 0x7fff_ffff;

/// Set in the left link of red nodes.
const RED: u32 = 1 << 31;

/// Nodes on the longest path: a tree of less than 2^31 nodes is at most 62 deep.
pub(super) const MAX_DEPTH: usize = 64;

/// A node of a tree, or a record that is in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    key: u64,
    /// Number of the left child; bit 31 is set if this node is red.
    left: u32,
    right: u32,
}

/// Where nodes live.
pub trait Nodes {
    /// Returns the node of that number; `None` for [`NIL`].
    fn node(&self, id: u32) -> Option<&Node>;

    /// Returns the node of that number; `None` for [`NIL`].
    fn node_mut(&mut self, id: u32) -> Option<&mut Node>;
}

/// The links are wrong: the tree cannot be relied on any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// A child link of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// What balance is kept with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Red,
    Black,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

impl Node {
    /// Makes a node that is in no tree.
    pub const fn new(key: u64) -> Self {
        Self {
            key,
            left: NIL,
            right: NIL,
        }
    }

    /// Makes a record that is in no tree and keeps the number `link`, below 2^31.
    pub const fn with_link(key: u64, link: u32) -> Self {
        Self {
            key,
            left: link & !RED,
            right: NIL,
        }
    }

    /// Returns the key.
    pub const fn key(&self) -> u64 {
        self.key
    }

    /// Returns a node of another key with the same links and colour.
    pub(super) const fn with_key(self, key: u64) -> Self {
        Self { key, ..self }
    }

    /// Returns the number that a record which is in no tree keeps.
    pub const fn link(&self) -> u32 {
        self.left & !RED
    }

    pub(super) fn child(&self, side: Side) -> u32 {
        match side {
            Side::Left => self.left & !RED,
            Side::Right => self.right,
        }
    }

    pub(super) fn set_child(&mut self, side: Side, id: u32) {
        match side {
            Side::Left => self.left = (self.left & RED) | (id & !RED),
            Side::Right => self.right = id,
        }
    }

    pub(super) fn colour(&self) -> Colour {
        if self.left & RED == 0 {
            Colour::Black
        } else {
            Colour::Red
        }
    }

    pub(super) fn paint(&mut self, colour: Colour) {
        match colour {
            Colour::Red => self.left |= RED,
            Colour::Black => self.left &= !RED,
        }
    }
}

/// The way from the root to a node: ancestors, and the side taken at each.
pub(super) struct Path {
    /// Those below `len` mean something.
    ids: [u32; MAX_DEPTH],
    /// Bit `i` is set if the right side was taken at ancestor `i`.
    rights: u64,
    pub(super) len: usize,
}

impl Path {
    pub(super) fn new() -> Self {
        Self {
            ids: [0; MAX_DEPTH],
            rights: 0,
            len: 0,
        }
    }

    pub(super) fn push(&mut self, id: u32, side: Side) -> Result<(), Corrupt> {
        *self.ids.get_mut(self.len).ok_or(Corrupt)? = id;
        // CAST: Below 64, or `get_mut` had failed.
        let bit = 1_u64.wrapping_shl(self.len as u32);
        match side {
            Side::Left => self.rights &= !bit,
            Side::Right => self.rights |= bit,
        }
        self.len = self.len.wrapping_add(1);
        Ok(())
    }

    /// Returns the ancestor and side that the first `len` steps end with.
    pub(super) fn step(&self, len: usize) -> Option<(u32, Side)> {
        let at = len.checked_sub(1)?;
        let id = *self.ids.get(at)?;
        // CAST: Below 64, or `get` had failed.
        let side = if self.rights.wrapping_shr(at as u32) & 1 == 0 {
            Side::Left
        } else {
            Side::Right
        };
        Some((id, side))
    }

    pub(super) fn pop(&mut self) -> Option<(u32, Side)> {
        let end = self.step(self.len)?;
        // OVERFLOW: There is a last step.
        self.len = self.len.wrapping_sub(1);
        Some(end)
    }

    pub(super) fn replace(&mut self, at: usize, id: u32) {
        if let Some(slot) = self.ids.get_mut(at) {
            *slot = id;
        }
    }
}

/// Returns the node `id`.
pub(super) fn get<N: Nodes>(nodes: &N, id: u32) -> Result<&Node, Corrupt> {
    nodes.node(id).ok_or(Corrupt)
}

/// Returns the node `id`.
pub(super) fn get_mut<N: Nodes>(nodes: &mut N, id: u32) -> Result<&mut Node, Corrupt> {
    nodes.node_mut(id).ok_or(Corrupt)
}

/// Says whether `id` is a red node; [`NIL`] counts as black.
pub(super) fn is_red<N: Nodes>(nodes: &N, id: u32) -> Result<bool, Corrupt> {
    Ok(id != NIL && get(nodes, id)?.colour() == Colour::Red)
}

/// Turns the subtree at `id` so that `id` goes down on `side`. Returns what comes up.
pub(super) fn rotate<N: Nodes>(nodes: &mut N, id: u32, side: Side) -> Result<u32, Corrupt> {
    let up = get(nodes, id)?.child(side.other());
    let middle = get(nodes, up)?.child(side);
    get_mut(nodes, id)?.set_child(side.other(), middle);
    get_mut(nodes, up)?.set_child(side, id);
    Ok(up)
}
