// SPDX-License-Identifier: GPL-2.0

//! A red-black tree with unique 64-bit keys, 16 bytes a node.
//!
//! The nodes live wherever [`Nodes`] finds them by number; the tree has only the number of the
//! root. There are no parent links: an operation remembers its path. Nothing allocates, so nothing
//! can fail for lack of memory. Links that lead nowhere or in circles end an operation with
//! [`Corrupt`], they cannot make it loop or panic.
//!
//! Source: the algorithms are those of T. Cormen et al., Introduction to Algorithms, chapter 13,
//! restated for a path in place of parent links.

use super::node::{
    get,
    get_mut,
    is_red,
    rotate,
    Colour,
    Corrupt,
    Node,
    Nodes,
    Path,
    Side,
    MAX_DEPTH,
    NIL, //
};

/// Why a node was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This node has the same key.
    Occupied(u32),
    /// The links are wrong.
    Corrupt,
}

impl From<Corrupt> for Refused {
    fn from(_: Corrupt) -> Self {
        Self::Corrupt
    }
}

/// The root of a tree.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    root: u32,
    len: u32,
}

/// Returns the side of `node` that another key belongs on.
fn side_of(key: u64, node: &Node) -> Side {
    if key < node.key() {
        Side::Left
    } else {
        Side::Right
    }
}

/// Goes up to the next ancestor whose left side was taken, whose turn it is in the order of keys;
/// `blacks` counts the black nodes on the path.
fn next_in_order<N: Nodes>(
    nodes: &N,
    path: &mut Path,
    blacks: &mut u32,
) -> Result<Option<u32>, Corrupt> {
    while let Some((up, side)) = path.pop() {
        if side == Side::Left {
            path.push(up, Side::Right)?;
            return Ok(Some(up));
        }
        if get(nodes, up)?.colour() == Colour::Black {
            *blacks = blacks.wrapping_sub(1);
        }
    }
    Ok(None)
}

impl Tree {
    /// Makes an empty tree.
    pub const fn new() -> Self {
        Self { root: NIL, len: 0 }
    }

    /// Returns the number of nodes.
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Returns whether there are no nodes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the node with that key.
    pub fn find<N: Nodes>(&self, nodes: &N, key: u64) -> Option<u32> {
        let mut id = self.root;
        for _ in 0..MAX_DEPTH {
            let node = nodes.node(id)?;
            if key == node.key() {
                return Some(id);
            }
            id = node.child(side_of(key, node));
        }
        None
    }

    /// Returns the node with the least key that is not below `key`.
    pub fn find_from<N: Nodes>(&self, nodes: &N, key: u64) -> Option<u32> {
        let mut id = self.root;
        let mut least = None;
        for _ in 0..MAX_DEPTH {
            let Some(node) = nodes.node(id) else {
                return least;
            };
            if node.key() == key {
                return Some(id);
            }
            if node.key() > key {
                least = Some(id);
            }
            id = node.child(side_of(key, node));
        }
        None
    }

    /// Inserts the node `id`, which is in no tree, with the key that it has.
    ///
    /// # Errors
    ///
    /// [`Refused::Occupied`]: a node has that key, nothing changed. [`Refused::Corrupt`].
    pub fn insert<N: Nodes>(&mut self, nodes: &mut N, id: u32) -> Result<(), Refused> {
        let key = get(nodes, id)?.key();
        let mut path = Path::new();
        let found = self.descend(nodes, key, &mut path)?;
        if found != NIL {
            return Err(Refused::Occupied(found));
        }
        let node = get_mut(nodes, id)?;
        *node = Node::new(key);
        node.paint(Colour::Red);
        self.attach(nodes, &path, id)?;
        // OVERFLOW: There are fewer than 2^31 numbers.
        self.len = self.len.wrapping_add(1);
        Ok(self.fix_red(nodes, &mut path, id)?)
    }

    /// Removes the node `id`, which keeps its key.
    ///
    /// # Errors
    ///
    /// [`Corrupt`], also if the node is not in the tree.
    pub fn remove<N: Nodes>(&mut self, nodes: &mut N, id: u32) -> Result<(), Corrupt> {
        let key = get(nodes, id)?.key();
        let mut path = Path::new();
        if self.descend(nodes, key, &mut path)? != id {
            return Err(Corrupt);
        }
        let node = *get(nodes, id)?;
        let (left, right) = (node.child(Side::Left), node.child(Side::Right));
        let (child, gone) = if left != NIL && right != NIL {
            self.replace_by_next(nodes, &mut path, id)?
        } else {
            let child = if left == NIL { right } else { left };
            self.attach(nodes, &path, child)?;
            (child, node.colour())
        };
        // OVERFLOW: `id` was in the tree.
        self.len = self.len.wrapping_sub(1);
        *get_mut(nodes, id)? = Node::new(key);
        match gone {
            Colour::Red => Ok(()),
            Colour::Black => self.fix_black(nodes, &mut path, child),
        }
    }

    /// Puts the node `new`, which is in no tree, in the place of `old`, with its key.
    ///
    /// # Errors
    ///
    /// [`Corrupt`], also if `old` is not in the tree.
    pub fn replace<N: Nodes>(&mut self, nodes: &mut N, old: u32, new: u32) -> Result<(), Corrupt> {
        let node = *get(nodes, old)?;
        let mut path = Path::new();
        if self.descend(nodes, node.key(), &mut path)? != old {
            return Err(Corrupt);
        }
        *get_mut(nodes, new)? = node;
        *get_mut(nodes, old)? = Node::new(node.key());
        self.attach(nodes, &path, new)
    }

    /// Walks to the node with that key and returns it, or [`NIL`]; `path` is where it is, or where
    /// it would be.
    fn descend<N: Nodes>(&self, nodes: &N, key: u64, path: &mut Path) -> Result<u32, Corrupt> {
        let mut id = self.root;
        while id != NIL {
            let node = get(nodes, id)?;
            if key == node.key() {
                break;
            }
            let side = side_of(key, node);
            path.push(id, side)?;
            id = node.child(side);
        }
        Ok(id)
    }

    /// Makes `id` the child at the end of `path`.
    fn attach<N: Nodes>(&mut self, nodes: &mut N, path: &Path, id: u32) -> Result<(), Corrupt> {
        self.attach_at(nodes, path, path.len, id)
    }

    /// Makes `id` the child at the end of the first `len` steps of `path`.
    fn attach_at<N: Nodes>(
        &mut self,
        nodes: &mut N,
        path: &Path,
        len: usize,
        id: u32,
    ) -> Result<(), Corrupt> {
        match path.step(len) {
            None => self.root = id,
            Some((parent, side)) => get_mut(nodes, parent)?.set_child(side, id),
        }
        Ok(())
    }

    /// Repairs the tree after the red node `id` was put at the end of `path`.
    fn fix_red<N: Nodes>(
        &mut self,
        nodes: &mut N,
        path: &mut Path,
        mut id: u32,
    ) -> Result<(), Corrupt> {
        loop {
            let Some((parent, side)) = path.pop() else {
                get_mut(nodes, id)?.paint(Colour::Black);
                return Ok(());
            };
            if !is_red(nodes, parent)? {
                return Ok(());
            }
            // A red parent is not the root.
            let (grand, parent_side) = path.pop().ok_or(Corrupt)?;
            let uncle = get(nodes, grand)?.child(parent_side.other());
            if !is_red(nodes, uncle)? {
                if side != parent_side {
                    let up = rotate(nodes, parent, parent_side)?;
                    get_mut(nodes, grand)?.set_child(parent_side, up);
                }
                let up = rotate(nodes, grand, parent_side.other())?;
                get_mut(nodes, up)?.paint(Colour::Black);
                get_mut(nodes, grand)?.paint(Colour::Red);
                return self.attach(nodes, path, up);
            }
            get_mut(nodes, parent)?.paint(Colour::Black);
            get_mut(nodes, uncle)?.paint(Colour::Black);
            get_mut(nodes, grand)?.paint(Colour::Red);
            id = grand;
        }
    }

    /// Puts the next greater node in the place of `id`, which has two children and is at the end of
    /// `path`. Returns the only child of the place that the next node left, to which `path` leads
    /// then, and the colour that is missing there.
    fn replace_by_next<N: Nodes>(
        &mut self,
        nodes: &mut N,
        path: &mut Path,
        id: u32,
    ) -> Result<(u32, Colour), Corrupt> {
        let above = path.len;
        path.push(id, Side::Right)?;
        let mut next = get(nodes, id)?.child(Side::Right);
        loop {
            let left = get(nodes, next)?.child(Side::Left);
            if left == NIL {
                break;
            }
            path.push(next, Side::Left)?;
            next = left;
        }
        let node = *get(nodes, next)?;
        let child = node.child(Side::Right);
        self.attach(nodes, path, child)?;
        // `id` may be the parent of `next`: its links are read after that.
        let old = *get(nodes, id)?;
        *get_mut(nodes, next)? = old.with_key(node.key());
        self.attach_at(nodes, path, above, next)?;
        path.replace(above, next);
        Ok((child, node.colour()))
    }

    /// Repairs the tree after a black node went, in whose place at the end of `path` is `id`.
    fn fix_black<N: Nodes>(
        &mut self,
        nodes: &mut N,
        path: &mut Path,
        mut id: u32,
    ) -> Result<(), Corrupt> {
        loop {
            if is_red(nodes, id)? {
                get_mut(nodes, id)?.paint(Colour::Black);
                return Ok(());
            }
            let Some((parent, side)) = path.pop() else {
                return Ok(());
            };
            let mut sibling = get(nodes, parent)?.child(side.other());
            if is_red(nodes, sibling)? {
                get_mut(nodes, sibling)?.paint(Colour::Black);
                get_mut(nodes, parent)?.paint(Colour::Red);
                rotate(nodes, parent, side)?;
                self.attach(nodes, path, sibling)?;
                path.push(sibling, side)?;
                sibling = get(nodes, parent)?.child(side.other());
            }
            let near = get(nodes, sibling)?.child(side);
            let far = get(nodes, sibling)?.child(side.other());
            if is_red(nodes, near)? || is_red(nodes, far)? {
                return self.lend_red(nodes, path, parent, side);
            }
            get_mut(nodes, sibling)?.paint(Colour::Red);
            id = parent;
        }
    }

    /// Ends the repair: the black sibling has a red child, which becomes the black node that is
    /// missing on `side` of `parent`.
    fn lend_red<N: Nodes>(
        &mut self,
        nodes: &mut N,
        path: &Path,
        parent: u32,
        side: Side,
    ) -> Result<(), Corrupt> {
        let sibling = get(nodes, parent)?.child(side.other());
        let far = get(nodes, sibling)?.child(side.other());
        if !is_red(nodes, far)? {
            let near = rotate(nodes, sibling, side.other())?;
            get_mut(nodes, parent)?.set_child(side.other(), near);
        }
        let colour = get(nodes, parent)?.colour();
        let up = rotate(nodes, parent, side)?;
        let far = get(nodes, up)?.child(side.other());
        get_mut(nodes, up)?.paint(colour);
        get_mut(nodes, parent)?.paint(Colour::Black);
        get_mut(nodes, far)?.paint(Colour::Black);
        self.attach(nodes, path, up)
    }

    /// Checks everything that must hold of the links, colours and keys.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] if something does not.
    pub fn check<N: Nodes>(&self, nodes: &N) -> Result<(), Corrupt> {
        let mut path = Path::new();
        let (mut id, mut blacks, mut seen) = (self.root, 0_u32, 0_u32);
        let mut height = None;
        let mut last = None;
        if is_red(nodes, id)? {
            return Err(Corrupt);
        }
        loop {
            while id != NIL {
                let node = get(nodes, id)?;
                let left = node.child(Side::Left);
                if node.colour() == Colour::Black {
                    blacks = blacks.wrapping_add(1);
                } else if is_red(nodes, left)? || is_red(nodes, node.child(Side::Right))? {
                    return Err(Corrupt);
                }
                path.push(id, Side::Left)?;
                id = left;
            }
            if *height.get_or_insert(blacks) != blacks {
                return Err(Corrupt);
            }
            let Some(up) = next_in_order(nodes, &mut path, &mut blacks)? else {
                return if seen == self.len {
                    Ok(())
                } else {
                    Err(Corrupt)
                };
            };
            let node = get(nodes, up)?;
            seen = seen.wrapping_add(1);
            if last.is_some_and(|last| last >= node.key()) || seen > self.len {
                return Err(Corrupt);
            }
            last = Some(node.key());
            id = node.child(Side::Right);
        }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(any(test, TWINPAGE_KUNIT))]
#[cfg_attr(not(test), kernel::macros::kunit_tests(twinpage_tree))]
mod tests {
    use super::*;

    /// Seven nodes, enough for every case of removal.
    struct Seven([Node; 7]);

    impl Nodes for Seven {
        fn node(&self, id: u32) -> Option<&Node> {
            self.0.get(id as usize)
        }

        fn node_mut(&mut self, id: u32) -> Option<&mut Node> {
            self.0.get_mut(id as usize)
        }
    }

    fn seven() -> Seven {
        let mut nodes = Seven([Node::new(0); 7]);
        for (key, node) in nodes.0.iter_mut().enumerate() {
            *node = Node::new(key as u64);
        }
        nodes
    }

    /// The permutation of 0..7 of that number: digits of the factorial number system.
    fn permutation(mut number: usize) -> [u32; 7] {
        let mut order = [0, 1, 2, 3, 4, 5, 6];
        for (at, left) in (1..=7_usize).rev().enumerate() {
            let swap = number.checked_rem(left).unwrap_or(0);
            number = number.checked_div(left).unwrap_or(0);
            order.swap(at, at.wrapping_add(swap));
        }
        order
    }

    /// Inserts in one order and removes in another, checking after each step.
    fn runs(insert: [u32; 7], remove: [u32; 7]) -> Result<(), Refused> {
        let (mut nodes, mut tree) = (seven(), Tree::new());
        for id in insert {
            tree.insert(&mut nodes, id)?;
            tree.check(&nodes)?;
        }
        for id in remove {
            tree.remove(&mut nodes, id)?;
            tree.check(&nodes)?;
            if tree.find(&nodes, u64::from(id)).is_some() {
                return Err(Refused::Corrupt);
            }
        }
        if tree.is_empty() {
            Ok(())
        } else {
            Err(Refused::Corrupt)
        }
    }

    #[test]
    fn every_order_of_insertion_is_balanced() {
        for number in 0..5040 {
            let order = permutation(number);
            assert_eq!(runs(order, [6, 5, 4, 3, 2, 1, 0]), Ok(()));
        }
    }

    #[test]
    fn every_order_of_removal_is_balanced() {
        for number in 0..5040 {
            let order = permutation(number);
            assert_eq!(runs([3, 1, 5, 0, 2, 4, 6], order), Ok(()));
            assert_eq!(runs([0, 1, 2, 3, 4, 5, 6], order), Ok(()));
        }
    }

    #[test]
    fn a_key_is_there_once() -> Result<(), Refused> {
        let (mut nodes, mut tree) = (seven(), Tree::new());
        tree.insert(&mut nodes, 3)?;
        if let Some(node) = nodes.node_mut(4) {
            *node = Node::new(3);
        }
        assert_eq!(tree.insert(&mut nodes, 4), Err(Refused::Occupied(3)));
        assert_eq!(tree.len(), 1);
        assert_eq!(tree.find(&nodes, 3), Some(3));
        Ok(())
    }

    #[test]
    fn a_node_takes_the_place_of_another() -> Result<(), Refused> {
        for old in 0..6 {
            let (mut nodes, mut tree) = (seven(), Tree::new());
            for id in 0..6 {
                tree.insert(&mut nodes, id)?;
            }
            tree.replace(&mut nodes, old, 6)?;
            assert_eq!(tree.check(&nodes), Ok(()));
            assert_eq!(tree.find(&nodes, u64::from(old)), Some(6));
            assert_eq!(tree.remove(&mut nodes, old), Err(Corrupt));
            assert_eq!(tree.remove(&mut nodes, 6), Ok(()));
            assert_eq!(tree.check(&nodes), Ok(()));
            assert_eq!(tree.len(), 5);
        }
        Ok(())
    }

    #[test]
    fn a_record_keeps_a_number_while_in_no_tree() {
        let node = Node::with_link(7, NIL);
        assert_eq!((node.key(), node.link()), (7, NIL));
        let node = Node::with_link(8, 1 << 30);
        assert_eq!((node.key(), node.link()), (8, 1 << 30));
    }

    #[test]
    fn an_empty_tree_finds_nothing() {
        let (mut nodes, mut tree) = (seven(), Tree::default());
        assert_eq!(tree.check(&nodes), Ok(()));
        assert_eq!(tree.find(&nodes, 1), None);
        assert_eq!(tree.remove(&mut nodes, 1), Err(Corrupt));
        assert_eq!(tree.insert(&mut nodes, 7), Err(Refused::Corrupt));
        assert!(tree.is_empty());
    }

    #[test]
    fn wrong_links_end_in_an_error_not_in_a_loop() -> Result<(), Refused> {
        let sides = [Side::Left, Side::Right];
        for victim in 0..7 {
            for target in [0, 1, 2, 3, 4, 5, 6, 7, NIL] {
                for side in sides {
                    let (mut nodes, mut tree) = (seven(), Tree::new());
                    for id in 0..7 {
                        tree.insert(&mut nodes, id)?;
                    }
                    if let Some(node) = nodes.node_mut(victim) {
                        if node.child(side) == target {
                            continue;
                        }
                        node.set_child(side, target);
                    }
                    assert_eq!(tree.check(&nodes), Err(Corrupt));
                    for id in 0..7 {
                        // Whatever the result is: it must return.
                        let _ = tree.find(&nodes, u64::from(id));
                        let _ = tree.remove(&mut nodes, id);
                        let _ = tree.insert(&mut nodes, id);
                    }
                }
            }
        }
        Ok(())
    }
}
