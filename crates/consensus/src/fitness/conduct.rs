//! What a replica does while nodes of its group are unfit or short of room. Pure.

use anchorhold_model::NodeId;
use anchorhold_storage::DiskState;

/// A node as another one knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeFitness {
    pub(crate) disk: DiskState,
    /// Whether it should lead.
    pub(crate) is_fit: bool,
}

/// A group as one of its replicas sees it.
#[derive(Clone, Debug)]
pub(crate) struct GroupView {
    /// This replica's node.
    pub(crate) own: NodeFitness,
    /// Whether this replica is a voter.
    pub(crate) votes: bool,
    pub(crate) leads: bool,
    /// Whether it leads and hears no quorum: what it says may still reach the others.
    pub(crate) has_lost_quorum: bool,
    /// Whether nobody has led for longer than an election should take.
    pub(crate) is_orphaned: bool,
    /// The other voters: what was heard of them lately, and the index that they match if this
    /// replica leads.
    pub(crate) others: Vec<(NodeId, Option<NodeFitness>, Option<u64>)>,
}

/// Which writes a leader takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Admission {
    /// All.
    #[default]
    All,
    /// None that adds data: a quorum could not keep it.
    NoData,
    /// None that adds data: another node is about to lead and can.
    Elsewhere,
}

impl Admission {
    const ALL: [Self; 3] = [Self::All, Self::NoData, Self::Elsewhere];

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::All => 0,
            Self::NoData => 1,
            Self::Elsewhere => 2,
        }
    }

    pub(crate) fn from_number(number: u8) -> Self {
        Self::ALL.into_iter().find(|one| one.number() == number).unwrap_or_default()
    }
}

/// What the replica does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Conduct {
    pub(crate) admission: Admission,
    /// Whether it stores entries that a leader sends.
    pub(crate) takes_entries: bool,
    /// Whether it tries to lead when nobody does.
    pub(crate) campaigns: bool,
    /// Whom it gives its leadership to.
    pub(crate) hand_over_to: Option<NodeId>,
}

/// Decides.
///
/// A node that nobody heard of lately counts neither as fit nor as short of room. Somebody always
/// campaigns: an unfit replica does when no other is fit, and when those that are do not win.
pub(crate) fn conduct(group: &GroupView) -> Conduct {
    let quorum = group.others.len().div_ceil(2) + 1;
    let heard = || group.others.iter().filter_map(|(_, fitness, _)| *fitness);
    let roomy = heard().filter(|fitness| fitness.disk == DiskState::Normal).count();
    let is_short = heard().any(|fitness| fitness.disk != DiskState::Normal);
    let fit = || group.others.iter().filter(|(_, heard, _)| heard.is_some_and(|one| one.is_fit));
    let has_heir = fit().next().is_some();
    // Who never said what it has may have nothing, not even a replica: the offer would only make
    // the others vote.
    let heir = fit().filter(|(_, _, matched)| matched.is_some());
    let heir = heir.max_by_key(|(node, _, matched)| (*matched, std::cmp::Reverse(*node)));
    let admission = match group.own.disk {
        DiskState::Normal if is_short && 1 + roomy < quorum => Admission::NoData,
        DiskState::Normal => Admission::All,
        DiskState::AlmostFull | DiskState::Full if heir.is_some() => Admission::Elsewhere,
        DiskState::AlmostFull | DiskState::Full => Admission::NoData,
    };
    Conduct {
        admission,
        // What reaches a full node while the others have no room either can only be deletes.
        takes_entries: group.own.disk != DiskState::Full || (group.votes && roomy < quorum),
        campaigns: group.own.is_fit || !has_heir || group.is_orphaned,
        hand_over_to: heir
            .filter(|_| group.leads && (!group.own.is_fit || group.has_lost_quorum))
            .map(|(node, _, _)| *node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NORMAL: NodeFitness = NodeFitness { disk: DiskState::Normal, is_fit: true };
    const UNFIT: NodeFitness = NodeFitness { disk: DiskState::Normal, is_fit: false };
    const SHORT: NodeFitness = NodeFitness { disk: DiskState::AlmostFull, is_fit: false };
    const FULL: NodeFitness = NodeFitness { disk: DiskState::Full, is_fit: false };

    /// What a leader does; the others match 7, 8, 9 and so on.
    fn leader(own: NodeFitness, others: &[Option<NodeFitness>]) -> Conduct {
        let others = others.iter().zip(2..).map(|(one, id)| (NodeId(id), *one, Some(id + 5)));
        let others = others.collect();
        conduct(&GroupView { own, leads: true, others, ..QUIET })
    }

    const QUIET: GroupView = GroupView {
        own: NORMAL,
        votes: true,
        leads: false,
        has_lost_quorum: false,
        is_orphaned: false,
        others: Vec::new(),
    };

    #[test]
    fn no_leadership_is_offered_to_who_never_said_what_it_has() {
        let others =
            |matched| vec![(NodeId(2), Some(UNFIT), Some(9)), (NodeId(3), Some(NORMAL), matched)];
        let heir = |matched| {
            let group = GroupView { own: UNFIT, leads: true, others: others(matched), ..QUIET };
            conduct(&group).hand_over_to
        };
        assert_eq!(heir(Some(3)), Some(NodeId(3)));
        assert_eq!(heir(None), None);
    }

    fn admission(own: NodeFitness, others: &[Option<NodeFitness>]) -> Admission {
        leader(own, others).admission
    }

    #[test]
    fn a_healthy_group_does_everything() {
        let all = leader(NORMAL, &[Some(NORMAL), Some(NORMAL)]);
        let expected = Conduct {
            admission: Admission::All,
            takes_entries: true,
            campaigns: true,
            hand_over_to: None,
        };
        assert_eq!(all, expected);
        // Also before anybody was heard of, and all alone.
        assert_eq!(leader(NORMAL, &[None, None]), expected);
        assert_eq!(leader(NORMAL, &[]), expected);
    }

    #[test]
    fn an_unfit_leader_hands_over_to_the_fit_voter_that_is_closest() {
        let to = |own, others: &[_]| leader(own, others).hand_over_to;
        assert_eq!(to(SHORT, &[Some(NORMAL), Some(NORMAL)]), Some(NodeId(3)));
        assert_eq!(to(SHORT, &[Some(NORMAL), Some(UNFIT)]), Some(NodeId(2)));
        assert_eq!(to(UNFIT, &[None, Some(NORMAL)]), Some(NodeId(3)));
        assert_eq!(to(SHORT, &[Some(SHORT), None]), None);
        assert_eq!(to(NORMAL, &[Some(NORMAL), Some(NORMAL)]), None);
    }

    #[test]
    fn a_leader_that_hears_no_quorum_hands_over_while_it_may_still_be_heard() {
        let to = |others: Vec<_>| {
            let view = GroupView { leads: true, has_lost_quorum: true, others, ..QUIET };
            conduct(&view).hand_over_to
        };
        let (two, three) = (NodeId(2), NodeId(3));
        let both = vec![(two, Some(NORMAL), Some(7)), (three, Some(NORMAL), Some(9))];
        assert_eq!(to(both), Some(three));
        // Nobody was heard of lately: the heartbeats stop, and that must do.
        assert_eq!(to(vec![(two, None, Some(7)), (three, None, Some(9))]), None);
        assert_eq!(to(vec![(two, Some(NORMAL), Some(7)), (three, None, Some(9))]), Some(two));
    }

    #[test]
    fn data_is_refused_when_no_quorum_has_room_for_it() {
        assert_eq!(admission(NORMAL, &[Some(SHORT), Some(NORMAL)]), Admission::All);
        assert_eq!(admission(NORMAL, &[Some(SHORT), Some(SHORT)]), Admission::NoData);
        assert_eq!(admission(NORMAL, &[Some(FULL), None]), Admission::NoData);
        // Silence is no shortage: that write fails by itself, with the right error.
        assert_eq!(admission(NORMAL, &[None, None]), Admission::All);
        assert_eq!(admission(SHORT, &[Some(SHORT), Some(FULL)]), Admission::NoData);
        assert_eq!(admission(SHORT, &[]), Admission::NoData);
        assert_eq!(admission(SHORT, &[Some(NORMAL), Some(FULL)]), Admission::Elsewhere);
        let five = [Some(SHORT), Some(SHORT), Some(NORMAL), Some(NORMAL)];
        assert_eq!(admission(NORMAL, &five), Admission::All);
        assert_eq!(admission(NORMAL, &[Some(SHORT); 4]), Admission::NoData);
    }

    #[test]
    fn a_full_node_takes_entries_only_if_the_others_cannot_do_without_it() {
        let takes = |own, others: &[_]| leader(own, others).takes_entries;
        assert!(!takes(FULL, &[Some(NORMAL), Some(NORMAL)]));
        assert!(takes(FULL, &[Some(NORMAL), Some(SHORT)]), "else no delete could be committed");
        assert!(takes(FULL, &[Some(NORMAL), None]));
        assert!(takes(SHORT, &[Some(NORMAL), Some(NORMAL)]));
        assert!(takes(FULL, &[]));
    }

    #[test]
    fn somebody_always_campaigns() {
        let campaigns = |own, others: Vec<Option<NodeFitness>>, is_orphaned| {
            let others = others.into_iter().zip(2..).map(|(one, id)| (NodeId(id), one, None));
            let others = others.collect();
            conduct(&GroupView { own, is_orphaned, others, ..QUIET }).campaigns
        };
        assert!(!campaigns(UNFIT, vec![Some(NORMAL), Some(UNFIT)], false));
        assert!(campaigns(UNFIT, vec![Some(UNFIT), Some(UNFIT)], false));
        assert!(campaigns(UNFIT, vec![None, None], false));
        // The fit one may lack entries, and then it cannot win.
        assert!(campaigns(UNFIT, vec![Some(NORMAL), None], true));
        assert!(campaigns(NORMAL, vec![Some(NORMAL), Some(NORMAL)], false));
    }
}
